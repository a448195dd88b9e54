"""Loading of the model and the images of a command: a model from any source, a data set by name or a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from casemate import data
from casemate.cli.shared.options import ModelOptions, parse_number
from casemate.data import LabelledImages, read_images, to_float
from casemate.errors import ModelError, SettingError
from casemate.models import ModelFacts, OpenedModel, numbered_classes, open_model
from casemate.progress import Observer


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
    names = numbered_classes(int(texts[0])) if counted else tuple(texts)
    if len(names) < 2:
        raise SettingError(f"--classes {texts[0]}; expected the number of classes, at least 2, or all of their names")
    return names


def load_images(
    model: OpenedModel, file: Path | None, dataset: str | None, data_dir: Path | None, observer: Observer
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
        model.check(to_float(images.pixels[:8]))
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
    model.check(to_float(whole.test.pixels[:8]))
    theirs, ours = whole.classes, model.model.classes
    unnamed = model.dataset is None or ours == numbered_classes(len(ours))
    if theirs != ours and not (unnamed and len(theirs) == len(ours)):
        raise ModelError(
            f"{model.name} has the classes {', '.join(ours[:3])}, ..., but {whole.title} has "
            f"{', '.join(theirs[:3])}, ...; choose the data set it was trained on"
        )
    return whole.test, name
