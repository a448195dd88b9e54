"""`PRODUCERS`: the producer of each kind of task. Loading one imports PyTorch; making a plan does not."""

from casemate.engine import Producer

PRODUCERS = {
    "train": Producer("casemate_study.tasks.training", "train_model"),
    "defend": Producer("casemate_study.tasks.defended_training", "defend_model"),
    "clean": Producer("casemate_study.tasks.measurements", "measure_clean"),
    "curve": Producer("casemate_study.tasks.measurements", "measure_curve"),
    "masking": Producer("casemate_study.tasks.measurements", "measure_masking"),
    "hypotheses": Producer("casemate_study.tasks.hypotheses", "try_hypotheses"),
    "worst": Producer("casemate_study.tasks.measurements", "measure_worst"),
    "evaluation": Producer("casemate_study.tasks.evaluations", "judge_model"),
    "targeted": Producer("casemate_study.tasks.measurements", "measure_targeted"),
    "pictures": Producer("casemate_study.tasks.pictures", "show_attack"),
    "neighbours": Producer("casemate_study.tasks.pictures", "show_neighbours"),
    "augmented": Producer("casemate_study.tasks.pictures", "show_augmented"),
    "samples": Producer("casemate_study.tasks.pictures", "show_samples"),
}
