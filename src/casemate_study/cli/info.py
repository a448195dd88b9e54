"""The study's part of `casemate info`, found by the entry point `casemate.info`."""

from casemate_study.experiments.catalogue import EXPERIMENTS


def experiments() -> dict[str, str]:
    """Titles of the experiments by name."""
    return {name: experiment.title for name, experiment in EXPERIMENTS.items()}
