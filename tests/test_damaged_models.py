"""Damaged and hostile models in every format: each opens, its hash recorded, or ends in one error, soon, in 1 GB."""

import hashlib
import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import casemate
from casemate.errors import CasemateError
from casemate.models import ModelMetadata, OpenedModel, open_model, save
from conftest import tiny_model
from damage import damaged

SECONDS = 2.0
"""Most processor seconds that one damaged file may take."""
IMPORTS = 1.5
"""Processor seconds that the process for HDF5 may take to import its parser, and until its limit, in whole seconds."""
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
        start = sum(os.times()[:4])  # with the processes that were started
        try:
            found = opens()
            hashes = {hashlib.sha256(each.read_bytes()).hexdigest() for each in files}
            assert hashes <= set(found.sha256.values()), "a file's hash is not recorded"
            opened += 1
        except CasemateError as error:
            messages.append(str(error))
        longest = max(longest, sum(os.times()[:4]) - start)
        for each, content in contents.items():
            each.write_bytes(content)
    assert not (folder.parent / "mark").exists(), "code was run"
    assert all(str(folder) in message and len(message) < 1500 for message in messages), max(messages, key=len)[:500]
    return opened, len(messages), longest


def small_sample(folder: Path, make: Callable[[Path], Opens]) -> None:
    """Thirty damaged files: each opens or is refused, soon; files that need trust are always refused."""
    opened, refused, longest = attack(folder, make, 30)
    assert refused >= 5
    assert opened + refused == 30
    assert opened == 0 or make.__name__ not in UNTRUSTED
    assert longest < SECONDS + IMPORTS


@pytest.mark.parametrize("name", CORE)
@pytest.mark.usefixtures("unchecked")
def test_a_damaged_model_opens_or_is_one_error(tmp_path: Path, name: str) -> None:
    small_sample(tmp_path, CORE[name])


@pytest.mark.extras
@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.usefixtures("unchecked")
def test_a_damaged_model_of_an_extra_opens_or_is_one_error(tmp_path: Path, name: str) -> None:
    make, library = EXTRAS[name]
    pytest.importorskip(library)
    small_sample(tmp_path, make)


PROGRAM = """
import resource, sys
from pathlib import Path
import conftest, test_damaged_models as own
folder, name = Path(sys.argv[1]), sys.argv[2]
make = own.CORE.get(name) or own.EXTRAS[name][0]
for each in ("before", "now"):
    (folder / each).mkdir()
opens = make(folder / "before")
try:
    opens()  # what is loaded late must not count
except own.CasemateError:
    pass
size, used = Path("/proc/self/statm").read_text().split()[:2]
page = resource.getpagesize()
limit = int(size) * page + 4_000_000_000  # more than may be used, so that it is measured what is
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
found = own.attack(folder / "now", make, 1000)
print(*found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - int(used) * page // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is measured as on Linux")
@pytest.mark.parametrize("name", [*CORE, *(pytest.param(name, marks=pytest.mark.extras) for name in EXTRAS)])
def test_a_thousand_damaged_models_of_each_format(tmp_path: Path, name: str) -> None:
    """In a process of its own; UserWarnings of libraries are errors there, so that none reaches the user."""
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name][1])
    here = os.pathsep.join(map(str, (Path(casemate.__file__).parents[1], Path(__file__).parent)))
    environment = os.environ | {"PYTHONPATH": here, "KERAS_BACKEND": "torch"}
    program = [sys.executable, "-W", "error::UserWarning", "-c", PROGRAM, str(tmp_path), name]
    done = subprocess.run(program, capture_output=True, text=True, timeout=1800, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    opened, refused, longest, memory = map(float, done.stdout.split()[-4:])
    assert opened + refused == 1000
    assert refused > 50
    assert longest < SECONDS + IMPORTS
    assert memory < MEMORY
