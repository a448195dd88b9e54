"""Options that several commands share, each with one help text, and checks that run before anything is computed."""

import os
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from casemate.errors import SettingError, StoreError
from casemate.progress import Observer
from casemate.settings import parse_number as parse_number
from casemate.settings import parse_share as parse_share

Flag = Annotated[bool, FlagCreatePairsOff, arg(help_behavior_hint="")]
TestSet = Annotated[
    str | None,
    arg(
        metavar="NAME",
        help="The test images of this data set, one of `casemate data list`.",
        help_behavior_hint="(default: the one the model was trained on)",
    ),
]
DataDir = Annotated[
    Path | None,
    arg(
        metavar="FOLDER",
        help="Search only this folder for Fashion-MNIST.",
        help_behavior_hint="(default: $CASEMATE_DATA, else the usual places)",
    ),
]
DataFile = Annotated[
    Path | None,
    arg(
        metavar="PATH",
        help="Your own images: a folder with a subfolder for each class; a .csv file of paths and labels; a .npz or "
        ".safetensors file with the arrays images, (n, channels, height, width), as bytes or as numbers in [0, 1], and "
        "labels; IDX or Parquet files; or CIFAR's binary files.",
        help_behavior_hint="(default: a data set)",
    ),
]
Unlabelled = Annotated[
    Path | None,
    arg(
        metavar="PATH",
        help="Train on these images too, without labels: a folder of pictures, a file with the array images, or what "
        "--data takes; for recipes that learn without labels.",
        help_behavior_hint="(default: none)",
    ),
]
Subset = Annotated[
    str | None,
    arg(
        metavar="HOW",
        help="Which images of --data are taken: first, or stratified for a random sample with the shares of the "
        "classes; stratified:7 draws it with the seed 7.",
        help_behavior_hint="(default: first, or stratified if the images are sorted by class)",
    ),
]
MODEL_HELP = (
    "A .safetensors file written by casemate, with its JSON file beside it; the name of a model that comes with "
    "casemate (`casemate info` lists them); package.module:name or file.py:name, a function without arguments that "
    "returns a PyTorch module or a casemate.Classifier, or a network's class (with its --weights); a .onnx or .keras "
    "file; timm:NAME; a Hugging Face folder; a .pt2 program by torch.export. Your own code is imported and run, from "
    "the current folder and among the installed modules; a file that could run code is loaded only with --trust-code."
)
ModelName = Annotated[Positional[str], arg(metavar="MODEL", help=MODEL_HELP)]
MODEL_FROM = {"--model-from": "write the function in the place of MODEL, such as networks.mine:load"}
"""An option that earlier versions had, and advice on what to write instead."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How MODEL is loaded, and what its file does not say of it."""

    weights: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: the model has its own)")] = None
    """Weights for a network that code or a name builds: .safetensors, or a state dict, of which nothing is run."""
    trust_code: Flag = False
    """Load a MODEL that can run code while it is loaded."""
    black_box: Flag = False
    """MODEL names a function that takes images and returns scores or predicted classes: it has no gradient."""
    queries: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: any number)")] = None
    """The largest number of images that a black box may be called with."""
    mean: Annotated[tuple[str, ...], arg(metavar="X ...", help_behavior_hint="(default: none, or the file's)")] = ()
    """Subtracted from the pixels before the network: one number, or one per channel."""
    std: Annotated[tuple[str, ...], arg(metavar="X ...", help_behavior_hint="(default: none, or the file's)")] = ()
    """Divides the pixels after that: one number, or one per channel."""
    bounds: Annotated[tuple[str, ...], arg(metavar="LOW HIGH", help_behavior_hint="(default: 0 1, or the file's)")] = ()
    """Smallest and largest pixel that the network takes, such as 0 255; mean and std are in its units, eps is not."""
    output: Annotated[str | None, arg(metavar="WHAT", help_behavior_hint="(default: found out)")] = None
    """What the network returns: logits, probabilities, or the index or key of the part that holds the logits."""
    classes: Annotated[tuple[str, ...], arg(metavar="N", help_behavior_hint="(default: found out)")] = ()
    """The number of classes, or their names in the order of the outputs."""
    channels_last: Flag = False
    """The network takes height, width, channels."""
    size: Annotated[tuple[int, ...], arg(metavar="H W", help_behavior_hint="(default: found out)")] = ()
    """Height and width of the images that the network takes, or one number for both."""


StoreFolder = Annotated[
    str | None,
    arg(
        metavar="FOLDER",
        help="The folder of finished artifacts, or the URL of shared storage, such as s3://bucket/prefix.",
        help_behavior_hint="(default: $CASEMATE_STORE, else in the user's cache)",
    ),
]
Json = Annotated[
    bool, FlagCreatePairsOff, arg(help="Print one JSON document instead of tables.", help_behavior_hint="")
]
Seed = Annotated[int, arg(metavar="N", help="Seed of all random numbers.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], arg(help="Where to compute; auto uses a GPU if there is one.")]
Threads = Annotated[
    int | None,
    arg(metavar="N", help="Number of CPU threads.", help_behavior_hint="(default: PyTorch's choice)"),
]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The device and the number of threads."""

    device: Device = "auto"
    threads: Threads = None

    def set_up(self, observer: Observer, default_threads: int | None = None) -> tuple[str, int]:
        """Import PyTorch and set its number of CPU threads; return ("cpu" or "cuda", the number in use).

        If the options give no number, it is `default_threads` on a CPU; without that, and on a GPU, PyTorch's choice.

        Raises `SettingError` for fewer than one thread, or a GPU that is not available.
        """
        if self.threads is not None and self.threads < 1:
            raise SettingError(f"threads = {self.threads}; expected at least 1")
        device = resolve(self.device, observer)
        import torch

        threads = self.threads or (default_threads if device == "cpu" else None)
        if threads is not None:
            torch.set_num_threads(threads)
        return device, torch.get_num_threads()


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the images of --data are read."""

    labels: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: found beside the images)")] = None
    """The labels of a folder of pictures (.csv), or of an IDX file."""
    split: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: none, or test)")] = None
    """The part of the data, such as test, where it has several."""
    resize: Annotated[tuple[int, ...], arg(metavar="N [N]", help_behavior_hint="(default: as they are)")] = ()
    """Resize the images: to N pixels along the shorter side, or to this height and width."""
    crop: Annotated[tuple[int, ...], arg(metavar="N [N]", help_behavior_hint="(default: all of them)")] = ()
    """Then cut out a square of this side, or this height and width, at the centre."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box"] = "bilinear"
    """How pixels are interpolated when images are resized."""
    channels: Annotated[Literal[1, 3] | None, arg(help_behavior_hint="(default: the model's, or the images')")] = None
    """Convert the images to grey (1) or colour (3)."""

    def of_data_set(self, unlabelled: Path | None) -> "Reading":
        """What is about a data set: beside images without labels, the options of size and colour are about those."""
        return self if unlabelled is None else Reading(labels=self.labels, split=self.split)


def words_of_options(options: ModelOptions | Reading) -> list[str]:
    """The options that are not at their defaults, as they are written on the command line."""
    words: list[str] = []
    for each in fields(options):
        value = getattr(options, each.name)
        if value != each.default:
            texts = value if isinstance(value, tuple) else [] if value is True else [value]
            words += [f"--{each.name.replace('_', '-')}", *map(str, texts)]
    return words


def load_torch(observer: Observer) -> None:
    """Import PyTorch, which takes a few seconds, and report it as progress."""
    with observer.work("Loading PyTorch", 0):
        import torch  # noqa: F401


def resolve(device: str, observer: Observer) -> str:
    """The device to compute on, "cpu" or "cuda", for the option "auto", "cpu" or "cuda".

    Raises `SettingError` for "cuda" if PyTorch finds no GPU that it can use.
    """
    load_torch(observer)
    import torch

    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise SettingError("device cuda, but PyTorch finds no GPU that it can use; choose --device cpu or auto")
    return "cuda" if found and device != "cpu" else "cpu"


def check_folder(path: Path, advice: str = "choose another --out") -> None:
    """Raise `StoreError`, which ends with `advice`, if files could not be written into the folder `path`.

    The folder is not created.
    """
    try:
        place = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
        if not place.is_dir():
            raise StoreError(f"{place} is a file, but a folder is expected there: {advice}")
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise StoreError(f"cannot write into {path}: {error.strerror or error}; {advice}") from error


def at_least_one(name: str, value: int | None) -> None:
    """Raise `SettingError` if the option `name` has a value below 1; None is accepted."""
    if value is not None and value < 1:
        raise SettingError(f"{name} = {value}; expected at least 1")
