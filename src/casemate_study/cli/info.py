"""The lines that the study adds to `casemate info`, which finds them by the entry point `casemate.info`."""

from casemate_study.experiments.catalogue import EXPERIMENTS


def experiments() -> dict[str, str]:
    """The titles of the study's experiments by name: "E1" is "Initial training, no early stopping"; for `casemate
    info`.
    """
    return {name: experiment.title for name, experiment in EXPERIMENTS.items()}
