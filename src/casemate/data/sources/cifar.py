"""CIFAR-10 and CIFAR-100 in their binary form: records of one or two labels and 3 x 32 x 32 bytes.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, and the description beside the
files. A record begins with the label (CIFAR-10), or with the superclass and then the class (CIFAR-100).
"""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from casemate.arrays import OpenFile, StoredArray, UnsoundError, guarded
from casemate.data.sources.arrays import read_rows
from casemate.data.sources.resizing import Resizing
from casemate.data.streamed import StreamedImages
from casemate.errors import DataError
from casemate.types import Labels, Pixels

_SHAPE = (3, 32, 32)
_BYTES = 3072
_NAMES = {1: "batches.meta.txt", 2: "fine_label_names.txt"}
"""By number of labels in a record, the file with the class names, one a line."""
_CLASSES = {1: 10, 2: 100}
_FILES = {
    "train": ("data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"),
    "test": ("test_batch.bin",),
}
"""By split, the files of CIFAR-10; CIFAR-100 has train.bin and test.bin."""
_MOST_TEXT = 100_000


def is_cifar(path: Path) -> bool:
    """Whether `path` is a folder with CIFAR's binary files, or one of the files."""
    known = {*sum(_FILES.values(), ()), "train.bin", "test.bin"}
    return any((path / name).is_file() for name in known) if path.is_dir() else path.suffix == ".bin"


def open_cifar(path: Path, split: str | None, resizing: Resizing) -> StreamedImages:
    """The images of one of CIFAR's binary files, or of a folder of them: its `split`, "test" if none is given.

    Whether a file is of CIFAR-10 or CIFAR-100 is seen by its length. Raises `DataError`.
    """
    files = [path]
    if path.is_dir():
        wanted = split or "test"
        candidates = (_FILES.get(wanted, ()), (f"{wanted}.bin",))
        files = next(([path / name for name in names] for names in candidates if _any(path, names)), [])
        missing = [file.name for file in files if not file.is_file()]
        if not files or missing:
            raise DataError(
                f"{path} lacks {', '.join(missing) or f'the split {wanted!r}'}; expected CIFAR's binary files, with "
                "--split train or test"
            )
    elif split is not None:
        raise DataError(f"{path} is one file, which has no splits; leave --split {split} out, or name its folder")
    parts = [_open(file) for file in files]
    kinds = {extra for _, _, extra in parts}
    if len(kinds) > 1:
        raise DataError(f"{path} holds files of CIFAR-10 and of CIFAR-100; name one of them")
    extra = kinds.pop()
    labels = torch.cat([labels for _, labels, _ in parts])
    if int(labels.max()) >= _CLASSES[extra]:
        raise DataError(f"{path}: label {int(labels.max())}, but CIFAR-{_CLASSES[extra]} has {_CLASSES[extra]} classes")
    streamed = StreamedImages(
        name=str(path),
        labels=labels,
        image_shape=_SHAPE,
        reader=lambda positions: _read([part for part, _, _ in parts], files, positions),
        classes=_class_names(files[0].parent / _NAMES[extra], _CLASSES[extra]),
        remarks=("used the test images; --split train reads the others",) if path.is_dir() and split is None else (),
    )
    return resizing.applied(streamed)


def _any(folder: Path, names: Sequence[str]) -> bool:
    return any((folder / name).is_file() for name in names)


def _open(path: Path) -> tuple[StoredArray, Labels, int]:
    """The images of one file, their labels, and the number of labels in a record. Raises `DataError`."""
    try:
        return _located(path)
    except UnsoundError as error:
        raise DataError(f"cannot read {path}: {error}; expected CIFAR's binary form") from error


@guarded
def _located(path: Path) -> tuple[StoredArray, Labels, int]:
    file = OpenFile.at(path)
    extra = next((extra for extra in _NAMES if file.size and not file.size % (extra + _BYTES)), None)
    if extra is None:
        raise UnsoundError(f"{file.size} bytes are no whole number of records of {1 + _BYTES} or {2 + _BYTES}")
    stride = extra + _BYTES
    count = file.size // stride
    bytes_ = np.dtype(np.uint8)
    labels = StoredArray(file=file, start=extra - 1, shape=(count, 1), dtype=bytes_, stride=stride)
    images = StoredArray(file=file, start=extra, shape=(count, *_SHAPE), dtype=bytes_, stride=stride)
    shards = [labels.rows(np.arange(at, min(at + 4096, count)))[:, 0] for at in range(0, count, 4096)]
    return images, torch.from_numpy(np.concatenate(shards)).long(), extra


def _read(parts: Sequence[StoredArray], files: Sequence[Path], positions: Labels) -> Pixels:
    """The images at positions of all files, one after the other."""
    found = torch.empty(len(positions), *_SHAPE, dtype=torch.uint8)
    ends = list(accumulate(part.shape[0] for part in parts))
    for part, file, end in zip(parts, files, ends, strict=True):
        mine = (positions >= end - part.shape[0]) & (positions < end)
        found[mine] = read_rows(part, positions[mine] - (end - part.shape[0]), _SHAPE, file)
    return found


def _class_names(path: Path, count: int) -> tuple[str, ...] | None:
    """The class names in a text file; None unless it holds as many as there are classes, all different."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            names = tuple(file.read(_MOST_TEXT).split())
    except OSError:
        return None
    return names if len(set(names)) == len(names) == count else None
