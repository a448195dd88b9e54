"""`PRODUCERS`: the producer of each kind of task. Loading one imports PyTorch; making a plan does not."""

from importlib import import_module

from casemate.engine import Producer, ProducerFn


def _producer(module: str, function: str) -> Producer:
    def load() -> ProducerFn:
        return getattr(import_module(module), function)

    return Producer(module=module, load=load)


PRODUCERS = {
    "train": _producer("casemate_study.tasks.training", "train_model"),
    "defend": _producer("casemate_study.tasks.defended_training", "defend_model"),
    "clean": _producer("casemate_study.tasks.measurements", "measure_clean"),
    "curve": _producer("casemate_study.tasks.measurements", "measure_curve"),
    "masking": _producer("casemate_study.tasks.measurements", "measure_masking"),
    "hypotheses": _producer("casemate_study.tasks.hypotheses", "try_hypotheses"),
    "worst": _producer("casemate_study.tasks.measurements", "measure_worst"),
    "evaluation": _producer("casemate_study.tasks.evaluations", "judge_model"),
    "targeted": _producer("casemate_study.tasks.measurements", "measure_targeted"),
    "pictures": _producer("casemate_study.tasks.pictures", "show_attack"),
    "neighbours": _producer("casemate_study.tasks.pictures", "show_neighbours"),
    "augmented": _producer("casemate_study.tasks.pictures", "show_augmented"),
    "samples": _producer("casemate_study.tasks.pictures", "show_samples"),
}
