"""Loading of the model and the images of a command: a saved model or the user's own, a data set by name or a file."""

import importlib
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from casemate import data
from casemate.cli.shared.options import Reading
from casemate.data import LabelledImages, StreamedImages, in_order_of, open_images, to_float
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


@dataclass(frozen=True)
class ChosenImages:
    """The images of a command, in memory."""

    images: LabelledImages
    name: str
    """The name of their file, folder or data set."""
    chosen: str
    """Which images of it they are: "first", or "stratified, seed 0" for a sample."""


def load_images(
    model: LoadedModel,
    file: Path | None,
    dataset: str | None,
    data_dir: Path | None,
    observer: Observer,
    *,
    count: int,
    subset: str | None = None,
    reading: Reading,
) -> ChosenImages:
    """At most `count` images with their labels, and the name of their file or data set.

    They are those in `file`, or else the test images of `dataset`, or else of the data set the model was trained on.
    Which ones of a file is said by `subset`: see `read_own`.

    Raises `SettingError` for two sources or none, `DataError` for images that cannot be loaded, `ModelError` for a data
    set with other classes than the model's.
    """
    if file is not None:
        if dataset is not None:
            raise SettingError("--data and --dataset both name images; give one of them")
        return read_own(model, file, count=count, subset=subset, reading=reading, observer=observer)
    given = [*reading.as_words(), *(() if subset is None else ["--subset"])]
    if given:
        raise SettingError(f"{given[0]} is about images of your own; give them with --data PATH")
    name = dataset or model.dataset
    known = ", ".join(data.NAMES)
    if name is None:
        raise SettingError(f"no images were given; give your own with --data PATH, or --dataset with one of {known}")
    if name not in data.NAMES:
        raise SettingError(
            f"the model was trained on {name!r}; give its images with --data PATH, or --dataset with one of {known}"
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
    return ChosenImages(whole.test[:count], name, "first")


def read_own(
    model: LoadedModel, file: Path, *, count: int, subset: str | None, reading: Reading, observer: Observer
) -> ChosenImages:
    """At most `count` of the user's own images, with the labels numbered as the model's classes.

    `subset` is "first", "stratified" or "stratified:SEED"; None takes the first images, or a stratified sample where
    the images are sorted by class, since the first ones would then be of few classes. Raises `CasemateError`.
    """
    if str(file) in data.NAMES and not file.exists():
        raise SettingError(f"--data {file}: there is no such file; for the data set of that name give --dataset {file}")
    known = model.model.interface
    shape = known["input_shape"]
    with observer.work("Reading the images", 0):
        found = open_own(file, reading, channels=None if shape is None else shape[0])
        if shape is not None and tuple(found.image_shape) != tuple(shape):
            raise SettingError(_misfit(found, shape))
        model.model.infer(to_float(found.read(slice(0, 2)).pixels))
        if found.classes is not None:
            found = in_order_of(found, model.model.classes)
        found = _chosen(found, count, subset, observer)
        found.conversions.clear()  # of the images that were read before, which are read again
        images = found.read(slice(None))
    for note in found.notes:
        observer.message(note)
    return ChosenImages(images, file.resolve().name, "first" if found.chosen == "all" else found.chosen)


def open_own(file: Path, reading: Reading, *, channels: int | None = None, split: str | None = None) -> StreamedImages:
    """Open the user's own images, of which only the labels are read.

    `channels` are the model's, if known, and `split` a part of the data; the options in `reading` come before both.
    """
    return open_images(
        file,
        labels=reading.labels,
        split=reading.split or split,
        size=_one_or_two("resize", reading.resize),
        crop=_one_or_two("crop", reading.crop),
        interpolation=reading.interpolation,
        channels=reading.channels or (channels if channels in (1, 3) else None),
    )


def about_reading(chosen: str, reading: Reading) -> dict[str, Any]:
    """How a command chose and read the user's own images, as JSON, for result.json; empty if in the ordinary way."""
    sampled = chosen.startswith("stratified")
    words = reading.as_words() + (["--subset", chosen.replace(", seed ", ":")] if sampled else [])
    return ({"chosen": chosen} if sampled else {}) | ({"data_options": words} if words else {})


def _chosen(images: StreamedImages, count: int, subset: str | None, observer: Observer) -> StreamedImages:
    """`count` of the images, as --subset says. Raises `SettingError` for an unknown value."""
    how, _, seed = (subset or "").partition(":")
    if how not in ("", "first", "stratified") or (seed and (how != "stratified" or not seed.isdecimal())):
        raise SettingError(f"--subset {subset}; expected first, stratified, or stratified:SEED such as stratified:7")
    if not how and count < len(images) and images.is_sorted_by_class:
        observer.message(
            f"{images.name} is sorted by class, so that its first {count:,} images would be of few classes: a "
            "stratified sample is used. --subset first takes the first ones."
        )
        how = "stratified"
    return images.subset(count, int(seed or 0)) if how == "stratified" else images.first(count)


def _misfit(images: StreamedImages, shape: Sequence[int]) -> str:
    """The error that images have another shape than the model takes, with the options that change theirs."""
    seen, wanted = (" x ".join(map(str, each)) for each in (images.image_shape, shape))
    options = []
    if images.image_shape[0] != shape[0]:
        options.append(f"--channels {shape[0]}" if shape[0] in (1, 3) else "images of as many channels")
    if images.image_shape[1:] != tuple(shape[1:]):
        options.append(f"--resize {shape[1]} {shape[2]}, or --resize SIDE and --crop {shape[1]} {shape[2]}")
    return f"{images.name} has images of {seen}, but the model takes {wanted}; give {' and '.join(options)}"


def _one_or_two(name: str, given: tuple[int, ...]) -> int | tuple[int, int] | None:
    """The value of --resize or --crop: none, one side, or height and width. Raises `SettingError` for more numbers."""
    match given:
        case ():
            return None
        case (side,):
            return side
        case (height, width):
            return height, width
    raise SettingError(f"--{name} {' '.join(map(str, given))}; expected one side, or height and width")
