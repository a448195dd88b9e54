"""Trained models that come with the package, by name: those of the benchmark, as `casemate benchmark` stored them."""

from pathlib import Path

_FOLDER = Path(__file__).parent / "weights"
"""Weights in float16, and a JSON file with data, recipe and measured numbers beside each."""


def published_names() -> tuple[str, ...]:
    """The names of the models that come with the package, sorted."""
    return tuple(sorted(each.stem for each in _FOLDER.glob("*.safetensors")))


def published_file(name: str) -> Path | None:
    """The file of a model that comes with the package; None for any other name."""
    return _FOLDER / f"{name}.safetensors" if name in published_names() else None
