"""PyTorch's data sets and data loaders, read by position: only the labels stay in memory."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from casemate.data.dataset import LabelledImages
from casemate.data.given import as_labelled
from casemate.data.sources.resizing import Resizing
from casemate.data.streamed import StreamedImages
from casemate.errors import DataError, kind_of
from casemate.rng import all_forked
from casemate.types import Labels

_SHARD = 256
"""Images that are read at a time to find their labels."""


def can_be_read_by_position(given: Any) -> bool:
    """Whether the elements of a data set, or of a data loader's, can be read in any order."""
    dataset = given.dataset if isinstance(given, DataLoader) else given
    return not isinstance(dataset, Sequence | IterableDataset | Tensor | LabelledImages) and all(
        hasattr(dataset, name) for name in ("__getitem__", "__len__")
    )


def open_torch(given: Any, resizing: Resizing) -> StreamedImages:
    """The images of a data set of pairs `(image, label)`, or of a data loader, in the order in which it gives them.

    The labels are the data set's `targets`, if it has them, or else all elements are read once. A loader's order is
    drawn once. The data set must give the same image each time: one with random augmentation raises `DataError`.
    """
    dataset = given.dataset if isinstance(given, DataLoader) else given
    collate: Callable[[list[Any]], Any] = given.collate_fn if isinstance(given, DataLoader) else default_collate
    name = kind_of(dataset)
    order = _order(given)
    if not len(order):
        raise DataError(f"{name} has no images; expected at least one")

    def read(positions: Labels) -> LabelledImages:
        with all_forked():  # a data set may draw from the global generators
            return as_labelled([collate([dataset[int(order[place])] for place in positions.tolist()])])

    first = read(torch.zeros(1, dtype=torch.int64))
    if not torch.equal(first.pixels, _again(read).pixels):
        raise DataError(
            f"{name} gives another image when it is read again; an evaluation needs the same: give it without random "
            "augmentation"
        )
    _, channels, height, width = first.pixels.shape
    return resizing.applied(
        StreamedImages(
            name=name,
            labels=_labels(dataset, order, read),
            image_shape=(channels, height, width),
            reader=lambda positions: read(positions).pixels,
            classes=_class_names(dataset),
            conversions=Counter(),
        )
    )


def _order(given: Any) -> Labels:
    """The positions in the data set of the elements that a loader gives, as drawn now, or of all of a data set."""
    if not isinstance(given, DataLoader):
        return torch.arange(len(given))
    with all_forked():
        batches = given.batch_sampler
        drawn = chain.from_iterable(batches) if batches is not None else given.sampler
        return torch.tensor([int(place) for place in drawn], dtype=torch.int64)


def _again(read: Callable[[Labels], LabelledImages]) -> LabelledImages:
    """The first image, read while the global generators are in another state."""
    with all_forked():
        torch.manual_seed(torch.initial_seed() + 1)
        torch.rand(1)
        return read(torch.zeros(1, dtype=torch.int64))


def _labels(dataset: Any, order: Labels, read: Callable[[Labels], LabelledImages]) -> Labels:
    """The labels of all images: those that the data set lists, if the first ones agree, or else read one by one."""
    listed = getattr(dataset, "targets", None)
    if isinstance(listed, Tensor | Sequence) and len(listed) == len(dataset):
        found = torch.as_tensor(listed)
        few = torch.arange(min(4, len(order)))
        if found.dtype == torch.int64 and found.ndim == 1 and torch.equal(found[order[few]], read(few).labels):
            return found[order]
    shards = range(0, len(order), _SHARD)
    return torch.cat([read(torch.arange(at, min(at + _SHARD, len(order)))).labels for at in shards])


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    """The data set's `classes`, as torchvision's have them: a list of names."""
    names = getattr(dataset, "classes", None)
    if not isinstance(names, Sequence) or isinstance(names, str) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names) or None
