"""A `.keras` file (extra `keras`): a Keras 3 model on Keras' PyTorch backend, so that it is a PyTorch module.

Its `config.json` is read and checked here (see `keras_config`), its weights are copied out and checked for links to
other files; only then does Keras see either. Models of other layers, and whole models in HDF5, need trust.
"""

import json
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from casemate.errors import MachineError, ModelError
from casemate.files import unique
from casemate.models.sources.extras import import_extra
from casemate.models.sources.facts import ModelFacts
from casemate.models.sources.keras_config import foreign_objects, input_shapes, is_channels_first
from casemate.models.sources.opened import OpenedModel, opened_network
from casemate.models.sources.trust import require_trust
from casemate.types import Images

_BACKEND = "KERAS_BACKEND"
_MOST_CONFIG = 16_000_000
"""Largest size of config.json, in bytes."""
_RATIO = 100
"""Largest ratio of a packed entry's size, unpacked to packed."""
_SMALL = 256_000_000
"""Unpacked size, in bytes, up to which any ratio is accepted."""
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
    try:
        if foreign:
            model = keras.saving.load_model(path, compile=False, safe_mode=False)
        else:
            config.pop("compile_config", None)
            model = keras.saving.deserialize_keras_object(config, safe_mode=True)
            with tempfile.TemporaryDirectory() as folder:
                model.load_weights(_copied_weights(path, Path(folder)))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{path} cannot be loaded by Keras: {type(error).__name__}: {_first(error)}") from error
    return _opened(model, config, path, stated)


def open_keras_hdf5(path: Path, stated: ModelFacts | None, *, trust_code: bool) -> OpenedModel:
    """A whole model that Keras saved as HDF5; without `trust_code` it is not opened. Raises as `open_keras`."""
    require_trust(
        path,
        "a Keras model in HDF5, and loading one can run code",
        trusted=trust_code,
        instead="save it as model.save('model.keras')",
    )
    keras = _import_keras(path)
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=False)
        config = json.loads(model.to_json())
    except Exception as error:
        raise ModelError(f"{path} cannot be loaded by Keras: {type(error).__name__}: {_first(error)}") from error
    return _opened(model, config, path, stated)


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
        raise ModelError(f"{path} is not a complete .keras file: {type(error).__name__}: {_first(error)}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: its {_CONFIG} is not a JSON object")
    return found


def _copied_weights(path: Path, folder: Path) -> Path:
    """A copy of the archive's weights in `folder`, with no links to other files. Raises `ModelError`."""
    copied = folder / _WEIGHTS
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(_WEIGHTS)
        if info.file_size > max(_SMALL, _RATIO * info.compress_size):
            raise ModelError(
                f"{path} states that {info.compress_size} bytes of weights unpack to {info.file_size}, more than "
                f"{_RATIO} times as many"
            )
        with archive.open(info) as source, copied.open("wb") as target:
            shutil.copyfileobj(source, target)
    h5py = import_extra("h5py", f"opening {path.name}", "keras")
    with h5py.File(copied) as file:
        _check_links(file, h5py, path)
    return copied


def _check_links(group: Any, h5py: Any, path: Path) -> None:
    """Raise `ModelError` if a group of an HDF5 file leads to another file, or has data in one."""
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ModelError(f"{path}: its weights lead elsewhere ({name} is a link); nothing of that was read")
        child = group[name]
        if isinstance(child, h5py.Group):
            _check_links(child, h5py, path)
        elif child.external or child.is_virtual:
            raise ModelError(f"{path}: its weights lie in another file ({name}); nothing of that was read")


def _opened(model: Any, config: dict[str, Any], path: Path, stated: ModelFacts | None) -> OpenedModel:
    shapes = input_shapes(config)
    shape = shapes[0] if len(shapes) == 1 else [None, *model.input_shape[1:]] if len(shapes) == 0 else []
    if len(shape) not in (3, 4):
        raise ModelError(f"{path} takes inputs of shape {shapes or shape}; expected one input, images")
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


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
