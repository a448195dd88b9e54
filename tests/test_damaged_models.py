"""Damaged and hostile models in every format: each opens, its hash recorded, or ends in one error, soon, in 1 GB."""

import hashlib
import json
import os
import random
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from casemate.errors import CasemateError
from casemate.models import ModelMetadata, OpenedModel, open_model, save
from conftest import tiny_model
from damage import damaged

SECONDS = 2.0
"""Most processor seconds that one damaged file may take."""
MEMORY = 1_000_000
"""Most memory beyond that of the imports, in KiB as Linux counts it."""
IMAGES = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Opens = Callable[[], OpenedModel]


def network() -> nn.Module:
    """The network of which the weights are damaged."""
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))


class Marking(nn.Module):
    """A network which is noticed when it is unpickled."""

    mark: str

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark, self.body = mark, network()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        Path(self.mark).touch()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images)


def checkpoint(folder: Path) -> Opens:
    path = save(tiny_model(), folder / "m.safetensors", ModelMetadata(architecture="tiny", dataset="tiny"))

    def opens() -> OpenedModel:
        try:  # the checksum would end most attempts early: let it be right
            sidecar = json.loads((folder / "m.json").read_bytes())
            sidecar["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            (folder / "m.json").write_text(json.dumps(sidecar))
        except Exception:
            pass
        return open_model(path)

    return opens


def weights(folder: Path) -> Opens:
    safetensors.torch.save_file(network().state_dict(), folder / "w.safetensors")
    return lambda: open_model("test_damaged_models:network", weights=folder / "w.safetensors")


def state_dict(folder: Path) -> Opens:
    torch.save(network().state_dict(), folder / "w.pt")
    return lambda: open_model("test_damaged_models:network", weights=folder / "w.pt")


def old_state_dict(folder: Path) -> Opens:
    torch.save(network().state_dict(), folder / "w.pth", _use_new_zipfile_serialization=False)
    return lambda: open_model("test_damaged_models:network", weights=folder / "w.pth")


def exported(folder: Path) -> Opens:
    torch.export.save(torch.export.export(network().eval(), (IMAGES,)), folder / "m.pt2")
    return lambda: open_model(folder / "m.pt2")


def exported_trusted(folder: Path) -> Opens:
    exported(folder)
    return lambda: open_model(folder / "m.pt2", trust_code=True)


def torchscript(folder: Path) -> Opens:
    with warnings.catch_warnings(action="ignore"):
        traced: Any = torch.jit.trace(network().eval(), IMAGES)
        traced.save(str(folder / "m.pt"))
    return lambda: open_model(folder / "m.pt")


def torchscript_trusted(folder: Path) -> Opens:
    torchscript(folder)

    def opens() -> OpenedModel:
        with warnings.catch_warnings(action="ignore"):
            return open_model(folder / "m.pt", trust_code=True)

    return opens


def pickled(folder: Path) -> Opens:
    torch.save(Marking(str(folder.parent / "mark")), folder / "m.pt")
    return lambda: open_model(folder / "m.pt")


def pickled_trusted(folder: Path) -> Opens:
    torch.save(network(), folder / "m.pt")
    return lambda: open_model(folder / "m.pt", trust_code=True)


def onnx(folder: Path) -> Opens:
    import_module("test_model_extras").onnx_file(folder / "m.onnx")
    return lambda: open_model(folder / "m.onnx")


def onnx_fixed(folder: Path) -> Opens:
    import_module("test_model_extras").onnx_file(folder / "m.onnx", batch=1)
    return lambda: open_model(folder / "m.onnx")


def onnx_external(folder: Path) -> Opens:
    module = import_module("onnx")
    path = folder / "m.onnx"
    import_module("test_model_extras").onnx_file(path)
    module.save(module.load(path), path, save_as_external_data=True, location="data.bin", size_threshold=0)
    return lambda: open_model(path)


def keras(folder: Path) -> Opens:
    import_module("test_model_extras").keras_model().save(folder / "m.keras")
    return lambda: open_model(folder / "m.keras")


def keras_branched(folder: Path) -> Opens:
    import_module("test_model_extras").functional_model().save(folder / "m.keras")
    return lambda: open_model(folder / "m.keras", trust_code=True)


def hdf5(folder: Path) -> Opens:
    with warnings.catch_warnings(action="ignore"):
        import_module("test_model_extras").keras_model().save(folder / "m.h5")
    return lambda: open_model(folder / "m.h5")


def hdf5_trusted(folder: Path) -> Opens:
    hdf5(folder)
    return lambda: open_model(folder / "m.h5", trust_code=True)


def hugging_face(folder: Path) -> Opens:
    import_module("test_model_extras").hugging_face_folder(folder / "vit")
    return lambda: open_model(folder / "vit")


def timm(folder: Path) -> Opens:
    made = import_module("timm").create_model("test_vit", pretrained=False, num_classes=7)
    safetensors.torch.save_file(made.state_dict(), folder / "w.safetensors")
    return lambda: open_model("timm:test_vit", weights=folder / "w.safetensors")


def timm_pickle(folder: Path) -> Opens:
    made = import_module("timm").create_model("test_resnet", pretrained=False, num_classes=7)
    torch.save(made.state_dict(), folder / "w.pt")
    return lambda: open_model("timm:test_resnet", weights=folder / "w.pt")


CORE: dict[str, Callable[[Path], Opens]] = {
    each.__name__: each
    for each in (
        *(checkpoint, weights, state_dict, old_state_dict, exported, exported_trusted),
        *(torchscript, torchscript_trusted, pickled, pickled_trusted),
    )
}
EXTRAS: dict[str, tuple[Callable[[Path], Opens], str]] = {
    each.__name__: (each, library)
    for each, library in (
        *((onnx, "onnx2torch"), (onnx_fixed, "onnx2torch"), (onnx_external, "onnx2torch")),
        *((keras, "keras"), (keras_branched, "keras"), (hdf5, "keras"), (hdf5_trusted, "keras")),
        *((hugging_face, "transformers"), (timm, "timm"), (timm_pickle, "timm")),
    )
}
UNTRUSTED = ("exported", "torchscript", "pickled", "hdf5")
"""Formats that are never opened without trust, whole or damaged."""


def attack(folder: Path, make: Callable[[Path], Opens], attempts: int) -> tuple[int, int, float]:
    """Open a model `attempts` times, one of its files damaged: how often it opened, and not, and the longest time."""
    folder = folder / "files"
    folder.mkdir()
    opens, name = make(folder), make.__name__
    files = sorted(each for each in folder.rglob("*") if each.is_file())
    contents = {each: each.read_bytes() for each in files}
    if name not in UNTRUSTED:
        assert opens().sha256
    source, opened, longest = random.Random(name), 0, 0.0
    messages: list[str] = []
    for attempt in range(attempts):
        file = source.choice(files)
        file.write_bytes(damaged(contents[file], attempt, source))
        start = time.process_time()
        try:
            found = opens()
            hashes = {hashlib.sha256(each.read_bytes()).hexdigest() for each in files}
            assert hashes <= set(found.sha256.values()), "a file's hash is not recorded"
            opened += 1
        except CasemateError as error:
            messages.append(str(error))
        if (took := time.process_time() - start) > longest:
            longest = took
        if os.environ.get("CASEMATE_SHOW_DAMAGE"):
            print(attempt, round(took, 2), messages[-1][:150] if messages else "", file=sys.stderr, flush=True)
        for each, content in contents.items():
            each.write_bytes(content)
    assert not (folder.parent / "mark").exists(), "code was run"
    assert all(str(folder) in message and len(message) < 1500 for message in messages), max(messages, key=len)[:500]
    return opened, len(messages), longest


@pytest.mark.parametrize("name", CORE)
@pytest.mark.usefixtures("unchecked")
def test_a_damaged_model_opens_or_is_one_error(tmp_path: Path, name: str) -> None:
    opened, refused, longest = attack(tmp_path, CORE[name], 30)
    assert refused >= 5
    assert opened + refused == 30
    assert opened == 0 or name not in UNTRUSTED
    assert longest < SECONDS
