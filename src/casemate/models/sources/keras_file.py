"""A `.keras` file (extra `keras`): a Keras 3 model on Keras' PyTorch backend, so that it is a PyTorch module.

Its `config.json` is read and checked here (see `keras_config`), its weights are copied by a process of their own,
without links to other files; only then does Keras see either. Models of other layers, and whole models in HDF5, need
trust.
"""

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from casemate.errors import CasemateError, MachineError, ModelError
from casemate.files import unique
from casemate.models.sources import hdf5_copy
from casemate.models.sources.extras import import_extra
from casemate.models.sources.facts import ModelFacts
from casemate.models.sources.failures import quoted
from casemate.models.sources.hdf5_copy import RATIO, SMALL
from casemate.models.sources.keras_config import foreign_objects, input_shapes, is_channels_first
from casemate.models.sources.opened import OpenedModel, opened_network
from casemate.models.sources.trust import require_trust
from casemate.types import Images

_BACKEND = "KERAS_BACKEND"
_MOST_CONFIG = 8_000_000
"""Largest size of config.json, in bytes."""
_BYTES_PER_SECOND = 50_000_000
"""Bytes of weights that are surely copied in a second of processor time."""
_MEMORY = 500_000_000
"""Most memory, in bytes, of the process that copies weights, beside four times their size."""
_MOST_SIDE = 1 << 16
"""Largest number of channels, and of pixels along a side, of images."""
_SPARE = 1_000_000
"""Weights that a model may have beyond twice as many as the file has numbers."""
_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_OTHERWISE = "export the model to ONNX: model.export(FILE, format='onnx')"


def open_keras(path: Path, stated: ModelFacts | None, *, trust_code: bool) -> OpenedModel:
    """The model in a `.keras` file; `trust_code` also admits layers that are not built into Keras.

    Raises:
        MissingExtraError: without Keras.
        MachineError: Keras is loaded already, or set, to compute with another library than PyTorch.
        ModelError: the file is damaged, or has other layers and is not trusted.
    """
    config = _read_config(path)
    foreign = foreign_objects({name: value for name, value in config.items() if name != "compile_config"})
    if foreign:
        require_trust(
            path,
            f"a Keras model with more than built-in layers ({', '.join(foreign[:3])}), which can run code",
            trusted=trust_code,
            instead=_OTHERWISE,
        )
    keras = _import_keras(path)
    config.pop("compile_config", None)
    with tempfile.TemporaryDirectory() as folder:
        copied, count = _safe_copy(_extracted(path, Path(folder)), path)

        def made() -> Any:
            return keras.saving.deserialize_keras_object(copy.deepcopy(config), safe_mode=not foreign)

        try:
            if not foreign:
                with keras.device("meta"):  # without memory
                    _check_size(made(), count, path)
            model = made()
            model.load_weights(copied)
            return _opened(model, config, path, stated)
        except CasemateError:
            raise
        except Exception as error:
            raise ModelError(f"{path} cannot be loaded by Keras: {quoted(error)}") from error


def open_keras_hdf5(path: Path, stated: ModelFacts | None, *, trust_code: bool) -> OpenedModel:
    """A whole model that Keras saved as HDF5; without `trust_code` it is not opened. Raises as `open_keras`."""
    require_trust(
        path,
        "a Keras model in HDF5, and loading one can run code",
        trusted=trust_code,
        instead="save it as model.save('model.keras')",
    )
    keras = _import_keras(path)
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder) / "model.h5"
        shutil.copyfile(path, held)
        copied, _ = _safe_copy(held, path)
        try:
            model = keras.saving.load_model(copied, compile=False, safe_mode=False)
            return _opened(model, json.loads(model.to_json()), path, stated)
        except CasemateError:
            raise
        except Exception as error:
            raise ModelError(f"{path} cannot be loaded by Keras: {quoted(error)}") from error


def _import_keras(path: Path) -> Any:
    """Keras on its PyTorch backend. Raises `MachineError` where another one is loaded or set."""
    advice = "give the command in a fresh program with KERAS_BACKEND=torch in its environment"
    if "keras" not in sys.modules:
        set_to = os.environ.setdefault(_BACKEND, "torch")
        if set_to != "torch":
            raise MachineError(f"{_BACKEND} is {set_to}; expected torch, by which the gradients are computed: {advice}")
    keras = import_extra("keras", f"opening {path.name}", "keras")
    used = keras.config.backend()
    if used != "torch":
        raise MachineError(f"Keras is loaded with the backend {used}; expected torch: {advice}")
    return keras


def _read_config(path: Path) -> dict[str, Any]:
    """The parsed config.json of the archive. Raises `ModelError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(_CONFIG)
            if info.file_size > _MOST_CONFIG:
                raise ModelError(f"{path}: its {_CONFIG} has {info.file_size} bytes; expected at most {_MOST_CONFIG}")
            with archive.open(info) as member:
                found = json.loads(member.read(_MOST_CONFIG + 1), object_pairs_hook=unique)
    except ModelError:
        raise
    except (Exception, RecursionError) as error:  # the parsers may raise anything on damaged bytes
        raise ModelError(f"{path} is not a complete .keras file: {quoted(error)}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: its {_CONFIG} is not a JSON object")
    return found


def _extracted(path: Path, folder: Path) -> Path:
    """The archive's weights, written into `folder`. Raises `ModelError`."""
    found = folder / "found.h5"
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(_WEIGHTS)
            if info.file_size > max(SMALL, RATIO * info.compress_size):
                raise ModelError(
                    f"{path} states that {info.compress_size} bytes of weights unpack to {info.file_size}, more than "
                    f"{RATIO} times as many"
                )
            with archive.open(info) as source, found.open("wb") as target:
                shutil.copyfileobj(source, target)
    except ModelError:
        raise
    except Exception as error:  # the parser may raise anything on damaged bytes
        raise ModelError(f"{path} is not a complete .keras file: {quoted(error)}") from error
    return found


def _safe_copy(found: Path, path: Path) -> tuple[Path, int]:
    """A copy of an HDF5 file beside it, without links, and the number of values in it; for errors, the model's `path`.

    The file is only read in a process of its own (see `hdf5_copy`). Raises `ModelError`.
    """
    import_extra("h5py", f"opening {path.name}", "keras")
    copied, size = found.with_name(_WEIGHTS), found.stat().st_size
    seconds, memory = 1 + size // _BYTES_PER_SECOND, _MEMORY + 4 * size
    program = [sys.executable, "-P", hdf5_copy.__file__, str(found), str(copied), str(seconds), str(memory)]
    try:
        done = subprocess.run(
            program, capture_output=True, text=True, errors="replace", timeout=60 * seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{path} is damaged: reading its weights does not come to an end") from error
    if done.returncode:
        words = (done.stderr.strip().splitlines() or ["the parser crashed, or did not come to an end"])[-1]
        raise ModelError(f"{path} is refused, or damaged: {words[:300]}")
    return copied, int(done.stdout)


def _check_size(planned: Any, count: int, path: Path) -> None:
    """Raise `ModelError` if a model, built without memory, has far more weights than the file has numbers."""
    if (wanted := planned.count_params()) > _SPARE + 2 * count:
        raise ModelError(
            f"{path} is damaged: its {_CONFIG} describes a model of {wanted} weights, but the file has {count} numbers"
        )


def _opened(model: Any, config: dict[str, Any], path: Path, stated: ModelFacts | None) -> OpenedModel:
    shapes = input_shapes(config)
    shape = shapes[0] if len(shapes) == 1 else [None, *model.input_shape[1:]] if len(shapes) == 0 else []
    if len(shape) not in (3, 4):
        raise ModelError(f"{path} takes inputs of shape {shapes or shape}; expected one input, images")
    if any(each is not None and (type(each) is not int or not 0 < each <= _MOST_SIDE) for each in shape[1:]):
        raise ModelError(f"{path} takes inputs of shape {shape}; expected sizes of images")
    flat = len(shape) == 3
    first = is_channels_first(config) and not flat
    channels, size = (1, shape[1:]) if flat else (shape[1], shape[2:]) if first else (shape[3], shape[1:3])
    height, width = size
    found = ModelFacts(
        channels_last=not (first or flat),
        channels=channels,
        size=None if height is None or width is None else (height, width),
    ).known_from("the input layer in config.json")
    network = KerasNetwork(model, squeezed=flat)
    fixed = ("channels_last", "channels", "size")
    return opened_network(network, found, stated, name=str(path), short=path.stem, fixed=fixed)


@final
class KerasNetwork(nn.Module):
    """A Keras model on its PyTorch backend, called like a PyTorch module, in the mode that it is set to.

    Args:
        model: the Keras model.
        squeezed: whether it takes `(n, height, width)`, without the dimension of a single channel.
    """

    def __init__(self, model: Any, *, squeezed: bool) -> None:
        super().__init__()
        self.model = model
        self.squeezed = squeezed
        self.eval()

    def forward(self, images: Images) -> Any:
        """What the model returns for the images, computed where they are."""
        keras = sys.modules["keras"]  # which made the model
        weight = next((each for each in self.parameters() if each.is_floating_point()), None)
        if weight is not None and weight.dtype == torch.float64:
            self._compute_in_float64()
        inputs = images.squeeze(1) if self.squeezed else images
        with keras.device("cpu" if images.device.type == "cpu" else "gpu"):
            return self.model(inputs, training=self.training)

    def _compute_in_float64(self) -> None:
        """Let all layers compute in float64, as their weights do; Keras' have a type of their own."""
        for layer in self.model._flatten_layers():
            if layer.compute_dtype != "float64":
                layer.dtype_policy = "float64"
        for each in self.model.inputs:
            each._dtype = "float64"  # which cannot be set otherwise
