"""An ONNX file, converted to a PyTorch module by onnx2torch (extra `onnx`); nothing in it is executed as code.

The tensors of a large model may lie in files beside it. The names of these files are checked before anything is read:
they must lie in the model's own folder.
"""

import warnings
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from casemate.errors import MissingExtraError, ModelError
from casemate.models.sources.extras import import_extra
from casemate.models.sources.facts import ModelFacts
from casemate.models.sources.failures import quoted
from casemate.models.sources.hdf5_copy import SMALL
from casemate.models.sources.onnx_rewrites import remove_copies, write_out_padding
from casemate.models.sources.opened import OpenedModel, opened_network
from casemate.models.sources.programs import FixedBatch
from casemate.models.sources.source_files import hashes_of

_EXTRA = "onnx"
_OPSET = 17
"""The newest set of operators that onnx2torch knows as a whole."""
_CHANNELS = (1, 3, 4)
"""Numbers of channels by which the layout of images is recognised."""
_MOST_NUMBERS = 1 << 26
"""Largest number of pixel values of an image that a network may take: 4,096 x 4,096 with four channels."""


def open_onnx(path: Path, stated: ModelFacts | None) -> OpenedModel:
    """The classifier in an ONNX file with one input, images, and one output or several, the first of them the scores.

    Raises:
        MissingExtraError: without onnx2torch.
        ModelError: the file is damaged, names data outside its folder, or has parts that cannot be converted.
    """
    what = f"opening {path.name}"
    onnx = import_extra("onnx", what, _EXTRA)
    onnx2torch = import_extra("onnx2torch", what, _EXTRA, torchvision="always")
    program, files = _read(path, onnx)
    shape = _input_shape(path, program)
    try:
        network = _converted(program, onnx, onnx2torch)
    except NotImplementedError as error:
        raise ModelError(
            f"{path} has a part that onnx2torch cannot convert: {error}; export the network with other operators "
            f"(such as opset_version={_OPSET} of torch.onnx.export), or give its code and weights: mine.py:Network "
            "--weights FILE"
        ) from error
    except MissingExtraError:
        raise
    except Exception as error:
        raise ModelError(f"{path} cannot be converted to PyTorch: {quoted(error)}") from error
    hashed = ModelFacts(files=hashes_of(files) or None).known_from("its files, as they were opened")
    found = _facts(shape).completed(hashed)
    if shape[0] is not None and not _accepts_pairs(network, shape):
        network = FixedBatch(network, shape[0])
    return opened_network(
        network, found, stated, name=str(path), short=path.stem, fixed=("size", "channels", "channels_last", "classes")
    )


def _converted(program: Any, onnx: Any, onnx2torch: Any) -> nn.Module:
    """The program as a PyTorch module, by way of an older set of operators where onnx2torch does not know a newer one.

    Raises `NotImplementedError` if it cannot be converted either way, and other errors of onnx2torch.
    """
    remove_copies(program)
    write_out_padding(program, onnx)
    try:
        return onnx2torch.convert(program).eval()
    except NotImplementedError as error:
        if all(each.version <= _OPSET for each in program.opset_import if not each.domain):
            raise
        try:
            return onnx2torch.convert(onnx.version_converter.convert_version(program, _OPSET)).eval()
        except Exception:  # of either library
            raise error from None


def _read(path: Path, onnx: Any) -> tuple[Any, list[Path]]:
    """The parsed and checked model with its external data, and the files in which these lie. Raises `ModelError`."""
    try:
        program = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise ModelError(f"{path} cannot be read as ONNX: {quoted(error)}") from error
    if not program.graph.node:
        raise ModelError(f"{path} is not an ONNX model: it has no nodes")
    outside = [each for each in _tensors(program) if each.external_data]
    names = {entry.value for each in outside for entry in each.external_data if entry.key == "location"}
    files = [_file_inside(path, name) for name in sorted(names)]
    _check_external_sizes(path, outside, sum(each.stat().st_size for each in files))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unknown entries of external data, which are ignored
            onnx.external_data_helper.load_external_data_for_model(program, str(path.parent))
        onnx.checker.check_model(program)
    except Exception as error:
        raise ModelError(f"{path} is not a valid ONNX model: {quoted(error)}") from error
    return program, files


def _tensors(message: Any) -> Iterator[Any]:
    """All tensors anywhere in a model: in its graph, in graphs inside nodes, in functions."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in [value] if hasattr(value, "ListFields") else value:
                if field.message_type.name == "TensorProto":
                    yield each
                else:
                    yield from _tensors(each)


def _check_external_sizes(path: Path, tensors: Iterable[Any], present: int) -> None:
    """Raise `ModelError` if tensors share the bytes of their files, and take far more memory than these have."""
    stated = 0
    for each in tensors:
        lengths = [entry.value for entry in each.external_data if entry.key == "length"]
        stated += max([int(text) if text.isdecimal() else 0 for text in lengths[:8]], default=present)
    if stated > max(SMALL, present):
        raise ModelError(f"{path} states external data of {stated} bytes in all, but their files have {present}")


def _file_inside(path: Path, name: str) -> Path:
    """The file of external data. Raises `ModelError` unless it lies in the model's folder, with links followed."""
    folder = place = path.parent.resolve()
    try:
        place = (folder / name).resolve()
        inside = place.is_relative_to(folder) and place != folder
        found = inside and place.is_file()
    except (OSError, ValueError, RuntimeError):  # a name with a null character, or too long; links in a circle
        inside = found = False
    if not inside:
        raise ModelError(
            f"{path} takes its data from {name[:200]!r}, outside its folder; nothing of it was read. External data "
            "must lie in the folder of the model"
        )
    if not found:
        raise ModelError(
            f"{path} takes its data from {name[:200]!r}, which is missing; put this file beside it, or export the "
            "model without external data"
        )
    return place


def _input_shape(path: Path, program: Any) -> tuple[int | None, ...]:
    """The shape of the only input that is not a weight, four numbers, None where one is not fixed."""
    weights = {each.name for each in program.graph.initializer}
    inputs = [each for each in program.graph.input if each.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(each.name for each in inputs)
        raise ModelError(f"{path} has {len(inputs)} inputs ({names}); expected one, the images")
    dims = inputs[0].type.tensor_type.shape.dim
    shape = tuple(each.dim_value if each.HasField("dim_value") and each.dim_value > 0 else None for each in dims)
    if len(shape) != 4:
        raise ModelError(
            f"{path} takes an input of {len(shape)} dimensions; expected images, (n, channels, height, width) or "
            "(n, height, width, channels)"
        )
    if (numbers := prod(each or 1 for each in shape[1:])) > _MOST_NUMBERS:
        raise ModelError(f"{path} takes images of {numbers} numbers; expected at most {_MOST_NUMBERS}")
    return shape


def _facts(shape: tuple[int | None, ...]) -> ModelFacts:
    """What the shape of the input says: layout, channels and size, as far as they are fixed."""
    if shape[1:] == (None, None, None):
        return ModelFacts()
    last = shape[1] not in _CHANNELS and shape[3] in _CHANNELS
    channels, size = (shape[3], shape[1:3]) if last else (shape[1], shape[2:4])
    height, width = size
    return ModelFacts(
        channels_last=last,
        channels=channels,
        size=None if height is None or width is None else (height, width),
    ).known_from("the input of the ONNX graph")


def _accepts_pairs(network: nn.Module, shape: tuple[int | None, ...]) -> bool:
    """Whether a network whose input has a fixed number of images accepts two as well."""
    if None in shape[1:]:
        return True
    try:
        with torch.no_grad():
            return len(network(torch.zeros(2, *[each or 1 for each in shape[1:]]))) == 2
    except Exception:  # the converted graph may raise anything
        return False
