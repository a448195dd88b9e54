"""Loading of the model and the images of a command: a saved model or the user's own, a data set by name or a file."""

import importlib
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from casemate import data
from casemate.data import LabelledImages, read_images, to_float
from casemate.errors import CasemateError, ModelError, SettingError
from casemate.models import Classifier, ModelMetadata, as_classifier, load, numbered_classes
from casemate.progress import Observer


@dataclass(frozen=True)
class LoadedModel:
    """A model, with its name, its training data and its metadata as far as they are known."""

    model: Classifier
    name: str
    """The model as the command line names it: its file, or package.module:function."""
    short: str
    """The bare name of that file or function, for naming a folder of results."""
    dataset: str | None
    """Name of the data set that it was trained on; None for a model that a function made."""
    description: ModelMetadata | None = None
    """The metadata saved beside its weights; None for a model that a function made."""


_FUNCTION = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")


def load_model(text: str, device: str) -> LoadedModel:
    """Load a model onto `device`: from a file written by casemate, or from the user's own function.

    `text` is the file, or package.module:function; only in the second form, and if no file has that name, is code
    imported and run. Raises `ModelError`.
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
    """The model that the user's function returns; `source` is package.module:function.

    The module is in the current folder or installed. Raises `ModelError` if the import or the call fails, or if the
    result is not a module.
    """
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
            f"The module is searched in {here} and among the installed ones; the function is called without arguments"
        ) from error
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"{source} returned a {type(made).__name__}; expected a torch.nn.Module that maps images within [0, 1] to "
            "logits, or a casemate.Classifier around it: Classifier(network, mean=..., std=...)"
        )
    return as_classifier(made)


def load_images(
    model: LoadedModel, file: Path | None, dataset: str | None, data_dir: Path | None, observer: Observer
) -> tuple[LabelledImages, str]:
    """The images to use with their labels, and the name of their file or data set.

    They are those in `file`, or else the test images of `dataset`, or else of the data set the model was trained on.

    Raises `SettingError` for two sources or none, `DataError` for images that cannot be loaded, `ModelError` for a data
    set with other classes than the model's.
    """
    if file is not None:
        if dataset is not None:
            raise SettingError("--data and --dataset both name images; give one of them")
        if str(file) in data.NAMES and not file.exists():
            raise SettingError(
                f"--data {file}: there is no such file; for the data set of that name give --dataset {file}"
            )
        images = read_images(file)
        model.model.infer(to_float(images.pixels[:2]))
        return images, file.name
    name = dataset or model.dataset
    known = ", ".join(data.NAMES)
    if name is None:
        raise SettingError(f"no images were given; give your own with --data FILE, or --dataset with one of {known}")
    if name not in data.NAMES:
        raise SettingError(
            f"the model was trained on {name!r}; give its images with --data FILE, or --dataset with one of {known}"
        )
    with observer.work("Reading the images", 0):
        whole = data.load(name, data_dir, observer=observer)
    model.model.infer(to_float(whole.test.pixels[:2]))
    theirs, ours = whole.classes, model.model.classes
    unnamed = model.dataset is None or ours == numbered_classes(len(ours))
    if theirs != ours and not (unnamed and len(theirs) == len(ours)):
        raise ModelError(
            f"{model.name} has the classes {', '.join(ours[:3])}, ..., but {whole.title} has "
            f"{', '.join(theirs[:3])}, ...; choose the data set it was trained on"
        )
    return whole.test, name
