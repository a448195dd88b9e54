"""Loading of the model and the images of a command: a model from any source, a data set by name or a file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from casemate import data
from casemate.cli.shared.options import ModelOptions, Reading, parse_number, words_of_options
from casemate.data import MOST_NUMBERS, ReadableImages, Resizing, StreamedImages, in_order_of, open_images, to_float
from casemate.errors import ModelError, SettingError
from casemate.models import ModelFacts, OpenedModel, is_numbered, numbered_classes, open_model
from casemate.progress import Observer

_MOST_IMAGES = 20_000
"""Most images that are read into memory at once; more are read in parts."""

_MOST_DIGITS = 6
"""Most digits of a number of classes."""


def load_model(text: str, device: str, options: ModelOptions | None = None) -> OpenedModel:
    """Open a model by its file, folder, name or code, with the options that describe it, and move it to `device`.

    Raises `ModelError`; `SettingError` for an option that cannot be read.
    """
    options = options or ModelOptions()
    found = open_model(
        text,
        weights=options.weights,
        trust_code=options.trust_code,
        black_box=options.black_box,
        queries=options.queries,
        overrides=_facts_of_options(options),
    )
    found.model.to(device)
    return found


def _facts_of_options(options: ModelOptions) -> ModelFacts | None:
    """What the options say of a model, or None if they say nothing. Raises `SettingError`."""
    stated: dict[str, Any] = {}
    for name in ("mean", "std", "bounds"):
        if texts := getattr(options, name):
            stated[name] = tuple(parse_number(f"--{name}", text) for text in texts)
    if "bounds" in stated and len(stated["bounds"]) != 2:
        raise SettingError(f"--bounds {' '.join(options.bounds)}; expected two numbers, such as 0 255")
    if options.output is not None:
        stated["output"] = int(options.output) if options.output.lstrip("-").isdecimal() else options.output
    if options.classes:
        stated["classes"] = _classes(options.classes)
    if options.channels_last:
        stated["channels_last"] = True
    if size := list(options.size):
        if len(size) > 2 or min(size) < 1:
            raise SettingError(f"--size {' '.join(map(str, size))}; expected height and width, both positive")
        stated["size"] = (size[0], size[-1])
    return ModelFacts(**stated) if stated else None


def _classes(texts: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes, from themselves or from their number. Raises `SettingError` for fewer than two."""
    counted = len(texts) == 1 and texts[0].isdecimal()
    if counted and len(texts[0]) > _MOST_DIGITS:
        raise SettingError(f"--classes {texts[0][:40]}; expected a number of classes of {_MOST_DIGITS} digits at most")
    names = numbered_classes(int(texts[0])) if counted else tuple(texts)
    if len(names) < 2:
        raise SettingError(f"--classes {texts[0]}; expected the number of classes, at least 2, or all of their names")
    return names


@dataclass(frozen=True)
class ChosenImages:
    """The images of a command, in memory unless they are many."""

    images: ReadableImages
    name: str
    """The name of their file, folder or data set."""
    chosen: str
    """Which images of it they are: "first", or "stratified, seed 0" for a sample."""


def load_images(
    model: OpenedModel,
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
    given = [*words_of_options(reading), *(() if subset is None else ["--subset"])]
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
    model.check(to_float(whole.test.pixels[:8]))
    theirs, ours = whole.classes, model.model.classes
    unnamed = model.dataset is None or is_numbered(ours)
    if theirs != ours and not (unnamed and len(theirs) == len(ours)):
        raise ModelError(
            f"{model.name} has the classes {', '.join(ours[:3])}, ..., but {whole.title} has "
            f"{', '.join(theirs[:3])}, ...; choose the data set it was trained on"
        )
    if is_numbered(ours):
        model.model.name_classes(theirs)
    return ChosenImages(whole.test[:count], name, "first")


def read_own(
    model: OpenedModel, file: Path, *, count: int, subset: str | None, reading: Reading, observer: Observer
) -> ChosenImages:
    """At most `count` of the user's own images, with the labels numbered as the model's classes.

    `subset` is "first", "stratified" or "stratified:SEED"; None takes the first images, or a stratified sample where
    the images are sorted by class, since the first ones would then be of few classes. Raises `CasemateError`.
    """
    with observer.work("Reading the images", 0):
        found = _chosen(open_for(model, file, reading), count, subset, observer)
        found.conversions.clear()  # of the images that were read before, which are read again
        fits = len(found) <= _MOST_IMAGES and len(found) * prod(found.image_shape) <= MOST_NUMBERS
        images = found.read(slice(None)) if fits else found
    for note in found.notes:
        observer.message(note)
    return ChosenImages(images, file.resolve().name, "first" if found.chosen == "all" else found.chosen)


def expect_queries(model: OpenedModel, options: ModelOptions, needed: int) -> None:
    """Raise `SettingError`, before a query is lost, if --queries may not suffice for the `needed` ones of an attack."""
    used, most = model.queries or 0, options.queries
    if most is not None and used + needed > most:
        raise SettingError(
            f"--queries {most:,}: the attacks may need {needed:,} images, and {used:,} were used before; give "
            f"--queries {used + needed}, or attack fewer --images with fewer queries each"
        )


def open_for(
    model: OpenedModel, file: Path, reading: Reading, *, split: str | None = None, labelled: bool = True
) -> StreamedImages:
    """Open the user's own images for a model, whose classes the labels then count; a few images are read.

    Images that the options neither resize nor crop are prepared as the model's configuration says, if it says so.
    Raises `CasemateError`, also where images and model do not fit.
    """
    if str(file) in data.NAMES and not file.exists():
        raise SettingError(f"{file}: there is no such file; for the data set of that name give --dataset {file}")
    shape = model.model.interface["input_shape"]
    channels = None if shape is None else shape[0]
    found = open_own(file, reading, channels=channels, split=split, labelled=labelled)
    wanted = model.preparation_of(found.image_shape)
    if wanted is not None and not (reading.resize or reading.crop):
        prepared = _as_prepared(reading, wanted)
        found = open_own(file, prepared, channels=channels, split=split, labelled=labelled)
        remark = f"{wanted.in_words}, as {model.stated.origins['preparation']} says (--resize and --crop change it)"
        found = replace(found, remarks=(*found.remarks, remark))
    if shape is not None and tuple(found.image_shape) != tuple(shape):
        raise SettingError(_misfit(found, shape))
    model.check(to_float(found.read(slice(0, 2)).pixels))
    if found.classes is None:
        return found
    ordered = in_order_of(found, model.model.classes)
    if ordered.labels is not found.labels or not is_numbered(model.model.classes):
        return ordered
    model.model.name_classes(found.classes)
    return replace(ordered, classes=found.classes)


def _as_prepared(reading: Reading, wanted: Resizing) -> Reading:
    """The options with the resizing and cropping of a model's configuration."""
    sides = {
        name: () if side is None else side if isinstance(side, tuple) else (side,)
        for name, side in (("resize", wanted.size), ("crop", wanted.crop))
    }
    return replace(reading, **sides, interpolation=wanted.interpolation)


def open_own(
    file: Path, reading: Reading, *, channels: int | None = None, split: str | None = None, labelled: bool = True
) -> StreamedImages:
    """Open the user's own images, of which only the labels are read.

    `channels` are the model's, if known, and `split` a part of the data; the options in `reading` come before both.
    Those about labels and parts are not for images that need not be `labelled`.
    """
    return open_images(
        file,
        labels=reading.labels if labelled else None,
        split=(reading.split or split) if labelled else None,
        size=_one_or_two("resize", reading.resize),
        crop=_one_or_two("crop", reading.crop),
        interpolation=reading.interpolation,
        channels=reading.channels or (channels if channels in (1, 3) else None),
        labelled=labelled,
    )


def about_options(loading: ModelOptions, reading: Reading, chosen: str = "first") -> dict[str, Any]:
    """The options of a model, and how images were chosen and read, as JSON; without what is at its default."""
    sampled = chosen.startswith("stratified")
    words = words_of_options(reading) + (["--subset", chosen.replace(", seed ", ":")] if sampled else [])
    found = {"model_options": words_of_options(loading), "chosen": chosen if sampled else "", "data_options": words}
    return {name: value for name, value in found.items() if value}


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
