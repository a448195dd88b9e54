"""The comparison with torchattacks and foolbox, run by hand with `-m reference`: what is missing fails, loudly."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from casemate import data
from casemate.models import ModelMetadata, create, save
from casemate.training import TrainConfig, fit
from scripts import imported

pytestmark = pytest.mark.reference

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "peers" / "compare.py"
PYTHON = SCRIPT.parents[2] / ".venv-peers" / "bin" / "python"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study's network after one epoch on 3,000 images: far from uniform, and not yet sure of itself."""
    images = data.load("fashion-mnist", offline=True)
    train, validation = data.split(data.subset(images.train, 3300, 0), 300, 0)
    model = create("paper-cnn", input_shape=images.image_shape, classes=images.classes, seed=0)
    fit(model, train, validation, TrainConfig(epochs=1, batch_size=32))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    return save(model, path, ModelMetadata(architecture="paper-cnn", dataset="fashion-mnist"))


@pytest.fixture
def script() -> ModuleType:
    """`compare.py`, as a module."""
    return imported("benchmarks/peers/compare.py")


def called(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The script, run as a user runs it."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_fgsm_and_bim_agree_with_torchattacks_and_foolbox(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = called("--model", checkpoint, "--n", 500, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["agreed"] is True
    assert result["n"] == 500
    assert len(result["rows"]) == 12
    for row in result["rows"]:
        assert set(row["difference"]) == {"torchattacks", "foolbox"}
        assert max(map(abs, row["difference"].values())) <= 0.2
    by_attack = {(row["attack"], row["eps"]): row["ours"] for row in result["rows"]}
    assert by_attack["FGSM", 0.01] > 40, "the model has learnt nothing, so agreement says nothing"
    assert by_attack["BIM", 0.1] < by_attack["FGSM", 0.1] < by_attack["FGSM", 0.01]
    assert str(checkpoint.parent) not in out.read_text()


def test_a_difference_above_the_allowance_is_no_agreement(
    checkpoint: Path, tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other libraries' answers are made up from our own, a few of them changed."""
    labels = data.load("fashion-mnist", offline=True).test.labels[:100]

    def answers(changed: int) -> dict[str, Any]:
        classes = labels.clone()
        classes[:changed] = (classes[:changed] + 1) % 10
        by_eps = {str(eps): classes.tolist() for eps in script.EPS}
        return {"versions": {}, "predictions": {"FGSM": by_eps, "BIM": by_eps}}

    def exactly_right(*_: object) -> dict[str, dict[str, Any]]:
        return {attack: {str(eps): labels.numpy() for eps in script.EPS} for attack in ("FGSM", "BIM")}

    monkeypatch.setattr(script, "our_predictions", exactly_right)
    arguments = Namespace(model=checkpoint, n=100, out=tmp_path / "result.json", data_dir=None, python=PYTHON)
    threads = torch.get_num_threads()
    for changed, code in ((0, 0), (1, 1)):
        monkeypatch.setattr(script, "their_result", lambda *_, changed=changed: answers(changed))
        assert script.run(arguments) == code
        assert json.loads(arguments.out.read_text())["agreed"] is (code == 0)
    torch.set_num_threads(threads)


def test_a_library_of_another_version_is_not_compared(
    tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foolbox.json").write_text(json.dumps({"versions": {"foolbox": "3.3.1"}, "predictions": {}}))
    monkeypatch.setattr(script.subprocess, "run", lambda *_, **__: Namespace(returncode=0, stderr=""))
    with pytest.raises(script.NotComparedError, match=r"3\.3\.1"):
        script.their_result("foolbox", Path(sys.executable), tmp_path, tmp_path / "model.safetensors")


def test_a_missing_environment_is_not_agreement(checkpoint: Path, tmp_path: Path) -> None:
    done = called("--model", checkpoint, "--n", 10, "--python", tmp_path / "none", "--out", tmp_path / "result.json")
    assert done.returncode == 2
    assert "NOT COMPARED" in done.stderr
    assert not (tmp_path / "result.json").exists()


def test_a_library_that_cannot_be_imported_is_not_agreement(checkpoint: Path, tmp_path: Path) -> None:
    """Here in the environment of the tests, which holds no other library."""
    done = called("--model", checkpoint, "--n", 10, "--python", sys.executable, "--out", tmp_path / "result.json")
    assert done.returncode == 2
    assert "torchattacks did not run" in done.stderr
    assert not (tmp_path / "result.json").exists()


def test_without_a_model_nothing_is_trained(tmp_path: Path) -> None:
    done = called("--out", tmp_path / "result.json")
    assert done.returncode == 2
    assert "trains nothing" in done.stderr
    assert list(tmp_path.iterdir()) == []
