"""A model that casemate saved: weights as safetensors, and a JSON file beside them."""

import warnings
from dataclasses import replace
from pathlib import Path

from casemate.models.checkpoint import load
from casemate.models.sources.facts import ModelFacts
from casemate.models.sources.opened import OpenedModel, opened_classifier


def open_saved(path: Path, stated: ModelFacts | None) -> OpenedModel:
    """The model in a checkpoint; what the user says of it must agree with it. Raises `ModelError`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch's, about layers without weights
        model, description = load(path)
    opened = opened_classifier(model, stated, name=str(path), short=path.stem, origin="its JSON file")
    return replace(opened, description=description)
