"""Trained models that come with the package, by name: those of the benchmark, as `casemate benchmark` stored them."""

from pathlib import Path

from casemate.errors import ModelError
from casemate.files import read_json
from casemate.models.checkpoint import sidecar_of

_FOLDER = Path(__file__).parent / "weights"
"""Weights in float16, and a JSON file with data, recipe and measured numbers beside each."""


def pretrained_names() -> tuple[str, ...]:
    """The names of the models that come with the package, sorted."""
    return tuple(sorted(each.stem for each in _FOLDER.glob("*.safetensors")))


def pretrained_file(name: str) -> Path | None:
    """The file of a model that comes with the package; None for any other name."""
    return _FOLDER / f"{name}.safetensors" if name in pretrained_names() else None


def pretrained_models() -> dict[str, str]:
    """What the models that come with the package are, by name: recipe, network and data set."""
    found = {name: read_json(sidecar_of(_FOLDER / name), ModelError) for name in pretrained_names()}
    return {
        name: f"{each['recipe']['objective']['name']}, {each['architecture']}, {each['dataset']}"
        for name, each in found.items()
    }
