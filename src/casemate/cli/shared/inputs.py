"""The model and the images that a command is given: a saved model, or the user's own; a data set by name, or a file."""

import importlib
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from casemate import data
from casemate.data import LabelledImages, read_images
from casemate.errors import CasemateError, ModelError, SettingError
from casemate.models import Classifier, ModelMetadata, load
from casemate.progress import Observer


@dataclass(frozen=True)
class LoadedModel:
    """A model under judgement."""

    model: Classifier
    name: str
    """Its file, or the function that made it."""
    short: str
    """The same in a word, for a folder's name."""
    dataset: str | None
    """The data set that it was trained on, where it says so."""
    description: ModelMetadata | None = None
    """What stands beside its weights, if it is a file."""


@dataclass(frozen=True)
class LoadedImages:
    """LoadedImages to judge a model by."""

    images: LabelledImages
    name: str
    """Of the data set, or of the file."""
    title: str


_FUNCTION = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")


def load_model(text: str, device: str) -> LoadedModel:
    """The model that is meant: a file written by casemate, or what a function of the user's returns.

    Code is imported only if `text` has the form package.module:function and is not the name of a file. Raises
    `ModelError` for a model that cannot be had.
    """
    path = Path(text)
    if _FUNCTION.fullmatch(text) and not path.exists():
        found = LoadedModel(_made_by(text), text, text.split(":")[-1], None)
    elif not path.exists():
        raise ModelError(
            f"{text} does not exist; expected a .safetensors file written by casemate, or package.module:function such "
            "as networks.mine:load"
        )
    else:
        model, description = load(path)
        found = LoadedModel(model, text, path.stem, description.dataset, description)
    found.model.to(device)
    return found


def _made_by(source: str) -> Classifier:
    """What the user's own function returns; it lies in a module of the current folder or an installed one."""
    module, _, name = source.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        made = getattr(importlib.import_module(module), name)()
    except CasemateError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise ModelError(
            f"{source} failed: {type(error).__name__}: {error} ({last.filename}, line {last.lineno}). "
            f"The module is looked for in {here} and among the installed ones; the function takes no arguments"
        ) from error
    if not isinstance(made, Classifier):
        raise ModelError(
            f"{source} returned a {type(made).__name__}; expected a casemate.Classifier: "
            "Classifier(network, input_shape=(channels, height, width), classes=(...)) around your network"
        )
    return made


def load_images(
    model: LoadedModel, file: Path | None, dataset: str | None, data_dir: Path | None, observer: Observer
) -> LoadedImages:
    """The images in `file`, or the test images of a data set: `dataset`, or the one the model was trained on.

    Raises `SettingError` for two sources or none, `DataError` for images that cannot be had, `ModelError` for a data
    set of other classes.
    """
    if file is not None:
        if dataset is not None:
            raise SettingError("--data and --dataset; give the images once")
        return LoadedImages(read_images(file), file.name, str(file))
    name = dataset or model.dataset
    known = ", ".join(data.NAMES)
    if name is None:
        raise SettingError(f"which images? Give your own with --data FILE, or --dataset with one of {known}")
    if name not in data.NAMES:
        raise SettingError(
            f"the model was trained on {name!r}; give its images with --data FILE, or --dataset with one of {known}"
        )
    with observer.work("Reading the images", 0):
        whole = data.load(name, data_dir, observer=observer)
    if whole.classes != model.model.classes and not (
        model.dataset is None and len(whole.classes) == len(model.model.classes)
    ):
        raise ModelError(
            f"{model.name} tells {', '.join(model.model.classes[:3])}, ... apart, but {whole.title} has the classes "
            f"{', '.join(whole.classes[:3])}, ...; choose the data set it was trained on"
        )
    return LoadedImages(whole.test, name, f"{name}, test images")
