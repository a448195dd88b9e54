"""Which function computes which kind of task. Loading one imports PyTorch; making a plan does not."""

from importlib import import_module

from casemate.engine.task import Produce, Producer


def _producer(module: str, function: str) -> Producer:
    def load() -> Produce:
        return getattr(import_module(module), function)

    return Producer(module=module, load=load)


PRODUCERS = {
    "train": _producer("casemate.study.training", "train_model"),
    "defend": _producer("casemate.study.defending", "defend_model"),
    "clean": _producer("casemate.study.measures", "measure_clean"),
    "curve": _producer("casemate.study.measures", "measure_curve"),
    "masking": _producer("casemate.study.measures", "measure_masking"),
    "worst": _producer("casemate.study.measures", "measure_worst"),
    "evaluation": _producer("casemate.study.judging", "judge_model"),
    "targeted": _producer("casemate.study.measures", "measure_targeted"),
    "pictures": _producer("casemate.study.showing", "show_attack"),
    "neighbours": _producer("casemate.study.showing", "show_neighbours"),
    "augmented": _producer("casemate.study.showing", "show_augmented"),
    "samples": _producer("casemate.study.showing", "show_samples"),
}
