"""A user's own labelled images, from files and folders of many formats or from PyTorch's data sets: `open_images`.

One module per format finds the images and their labels; `StreamedImages` is what all of them return.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from casemate.data.dataset import UNLABELLED, LabelledImages
from casemate.data.given import as_labelled
from casemate.data.sources.arrays import EXPECTED, array_splits, open_arrays
from casemate.data.sources.cifar import is_cifar, open_cifar
from casemate.data.sources.files import SPLITS, open_folder, open_pictures, open_table
from casemate.data.sources.idx_files import is_idx, open_idx
from casemate.data.sources.parquet import open_parquet, parquet_files, split_of
from casemate.data.sources.resizing import Interpolation as Interpolation
from casemate.data.sources.resizing import Resizing as Resizing
from casemate.data.sources.torch_data import can_be_read_by_position, open_torch
from casemate.data.streamed import StreamedImages as StreamedImages
from casemate.errors import DataError, kind_of
from casemate.files import as_path

FORMATS = (
    "a folder with a subfolder of pictures for each class, a .csv file of paths and labels, a .npz or .safetensors "
    "file with the arrays images and labels, IDX files, Parquet files with the columns image and label, or CIFAR's "
    "binary files"
)
"""What `open_images` reads, in words."""


def open_images(
    source: Any,
    *,
    labels: Path | str | None = None,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    size: int | tuple[int, int] | None = None,
    crop: int | tuple[int, int] | None = None,
    interpolation: Interpolation = "bilinear",
    channels: Literal[1, 3] | None = None,
    subset: int | None = None,
    seed: int = 0,
    labelled: bool = True,
) -> StreamedImages:
    """Open a user's labelled images without reading more than their labels; nothing in a file is executed.

    Args:
        source: a file or folder, see `FORMATS`; a data set or data loader of PyTorch, which is read by position if
            possible; or anything else that `casemate.data.as_labelled` takes, which then is in memory.
        labels: the CSV file with the labels of a folder of pictures, or the IDX file with those of an IDX file.
        split: the part of the data set, such as "train" or "test", where the source has several.
        classes: the names of the model's classes, in the order of its logits. Labels are renumbered by the names of the
            source's classes, if these are among them.
        size: resize to this many pixels along the shorter side, or to `(height, width)`.
        crop: cut out a square of this side, or `(height, width)`, at the centre, after resizing.
        interpolation: of the resizing.
        channels: 1 or 3: convert to grey or colour.
        subset: take a stratified random sample of this many images.
        seed: of that sample.
        labelled: False for images of which no label is needed: pictures anywhere in a folder, or a file with the array
            images alone, too. All labels are `UNLABELLED` then, and of several parts that to train on is taken.

    Raises:
        DataError: the source is missing, damaged, or of another kind.
        SettingError: an option that does not fit.
    """
    resizing = Resizing(size=size, crop=crop, interpolation=interpolation, channels=channels)
    try:
        found = _open(source, None if labels is None else as_path(labels, "labels"), split, resizing, labelled=labelled)
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror or error}; expected {FORMATS}") from error
    if classes is not None:
        found = in_order_of(found, tuple(classes))
    return found if subset is None else found.subset(subset, seed)


def splits_of(source: Path) -> tuple[str, ...]:
    """The parts of a data set, such as "train" and "test", that a file or folder has; empty if it has one part."""
    if not source.is_dir():
        return array_splits(source) if source.suffix == ".npz" else ()
    files = parquet_files(source)
    if files:
        found = {split_of(file) for file in files}
    elif is_cifar(source) or any(is_idx(each) for each in source.iterdir()):
        found = {"train", "test"}
    else:
        found = {each.name for each in source.iterdir() if each.is_dir() and each.name.lower() in SPLITS}
    return tuple(sorted(found)) if len(found) > 1 else ()


_NAMED = ", or name the model's classes as these are, in the order of its outputs: --classes"


def in_order_of(images: StreamedImages, classes: tuple[str, ...]) -> StreamedImages:
    """The same images with labels that count the model's `classes`, matched by name where the source names its own.

    Without common names, as many classes are taken to be in the same order, and a remark says so. Raises `DataError`
    where that is impossible.
    """
    own = images.classes
    if own is None or own == classes:
        return replace(images, classes=classes)
    by_name = {name.casefold(): place for place, name in enumerate(classes)}
    places = [by_name.get(name.casefold()) for name in own]
    known = [place for place in places if place is not None]
    if len(known) == len(own) and len(by_name) == len(classes):
        return replace(images, labels=torch.tensor(known)[images.labels], classes=classes)
    if len(own) != len(classes) or known:
        missing = [name for name, place in zip(own, places, strict=True) if place is None]
        other = ""
        if len(own) == len(classes):
            numbers = classes == tuple(map(str, range(len(classes))))
            stated = f", or say what its outputs stand for, in their order: --classes {' '.join(own)}"
            other = stated if numbers else _NAMED
        raise DataError(
            f"{images.name} has the classes {_few(own)}, but the model {_few(classes)}; not among the model's: "
            f"{_few(missing)}. Name the folders or labels like the model's classes{other}"
        )
    remark = f"its classes {_few(own)} are taken in this order for the model's {_few(classes)}"
    return replace(images, classes=classes, remarks=(*images.remarks, remark))


def _in_memory(images: LabelledImages, name: str) -> StreamedImages:
    """Images in memory behind the methods of `StreamedImages`."""
    channels, height, width = images.pixels.shape[1:]
    return StreamedImages(
        name=name,
        labels=images.labels,
        image_shape=(channels, height, width),
        reader=lambda positions: images.pixels[positions],
    )


def _without_labels(source: Any, split: str | None, resizing: Resizing) -> StreamedImages:
    """The images of a source, all labelled `UNLABELLED`."""
    path = Path(source) if isinstance(source, str | Path) else None
    if path is not None and path.suffix.lower() in (".npz", ".safetensors"):
        return open_arrays(path, split, resizing, labelled=False)
    if path is not None and path.is_dir() and not _is_in_files_of_images(path):
        return open_pictures(path if split is None else path / split, resizing)
    if path is not None and path.exists() and split is None and "train" in splits_of(path):
        split = "train"
    found = _open(source, None, split, resizing)
    return replace(found, labels=torch.full_like(found.labels, UNLABELLED), classes=None)


def _is_in_files_of_images(folder: Path) -> bool:
    """Whether a folder holds Parquet, CIFAR or IDX files, each with many images, instead of pictures."""
    return bool(parquet_files(folder)) or is_cifar(folder) or any(is_idx(each) for each in folder.iterdir())


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")


def _open(
    source: Any, labels: Path | None, split: str | None, resizing: Resizing, *, labelled: bool = True
) -> StreamedImages:
    """The images of a source, by its format."""
    if not labelled:
        return _without_labels(source, split, resizing)
    if not isinstance(source, str | Path):
        if labels is not None or split is not None:
            raise DataError("labels= and split= are for files and folders; a data set has its own")
        if isinstance(source, StreamedImages):
            return resizing.applied(source)
        if can_be_read_by_position(source):
            return open_torch(source, resizing)
        return resizing.applied(_in_memory(as_labelled(source), kind_of(source)))
    path = Path(source)
    if not path.exists():
        raise DataError(f"{path} does not exist; expected {FORMATS}")
    takes_labels = path.is_dir() or is_idx(path)
    if labels is not None and not takes_labels:
        raise DataError(
            f"{path} with --labels {labels}: only a folder or an IDX file takes the labels from another file"
        )
    if path.is_dir() and labels is None:
        if parquet_files(path):
            return open_parquet(path, split, resizing)
        if is_cifar(path):
            return open_cifar(path, split, resizing)
        if any(is_idx(each) for each in path.iterdir()):
            return open_idx(path, None, split, resizing)
    if path.is_dir():
        return open_folder(path, labels, split, resizing)
    if is_idx(path):
        return open_idx(path, labels, split, resizing)
    match path.suffix.lower():
        case ".csv":
            return open_table(path, None, split, resizing)
        case ".parquet":
            return open_parquet(path, split, resizing)
        case ".bin":
            return open_cifar(path, split, resizing)
        case ".npz" | ".safetensors":
            return open_arrays(path, split, resizing)
    raise DataError(f"{path} ends in {path.suffix or 'nothing'}; {EXPECTED}; or give {FORMATS}")
