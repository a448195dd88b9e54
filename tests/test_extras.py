"""Without the extras: what then still works and gives the same, and what names the extra that it needs."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts import Numbers, Shelf, catalogued, measured
from casemate import compiled, data
from casemate.attacks import APGD, BIM, FAB, FGSM, PGD, DeepFool, Square
from casemate.data import to_float
from casemate.errors import CasemateWarning, MissingExtraError
from casemate.evaluation import evaluate
from casemate.models import create
from casemate.models.accel.equivalence import TOLERANCE
from casemate.models.accel.freeze import freeze
from casemate.provenance import surroundings
from casemate.training import TrainConfig, fit
from casemate_study.results.paired import compare_accuracy, compare_loss, is_correct
from conftest import tiny_images, tiny_model
from test_study import Run, runner

IMAGES = tiny_images(48, noise=90.0)
ATTACKS = {
    "fgsm": FGSM(eps=0.1),
    "bim": BIM(eps=0.1, steps=5),
    "pgd": PGD(eps=0.1, steps=5),
    "apgd": APGD(eps=0.1, steps=8),
    "square": Square(eps=0.1, n_queries=40),
    "fab": FAB(norm="linf", steps=8),
    "fab l2": FAB(norm="l2", steps=8),
    "deepfool": DeepFool(steps=8),
}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(capsys)


def computed() -> dict[str, Any]:
    """What loops take part in: a training, its model's logits as attacks see them, attacks, an evaluation."""
    train, validation = tiny_images(96, seed=1), tiny_images(32, seed=2)
    trained = fit(tiny_model(), train, validation, TrainConfig(epochs=3, batch_size=16))
    images = to_float(IMAGES.pixels)
    found: dict[str, Any] = {"loss": [row["loss"] for row in trained.history], "loops": compiled.AVAILABLE}
    for name in ("tiny", "paper-cnn"):
        model = create(name, input_shape=(1, 28, 28), classes=("a", "b", "c"), seed=3).eval()
        seen = torch.rand(9, 1, 28, 28, generator=torch.Generator().manual_seed(4))
        found[f"logits {name}"] = freeze(model, seen).copy(seen).detach().tolist()
    for name, attack in ATTACKS.items():
        with warnings.catch_warnings(action="ignore", category=CasemateWarning):  # of images that nothing fools
            result = attack(trained.model, images, IMAGES.labels)
        found[name] = {"status": result.status.tolist(), "prediction": result.prediction.tolist()}
        found[f"norm {name}"] = result.norm.tolist()
    judged = evaluate(trained.model, IMAGES, eps=[0.05, 0.1], attacks={n: ATTACKS[n] for n in ("pgd", "fab")})
    found["robust"] = judged.cascade.robust.tolist()
    result = judged.as_json()
    found["verdict"] = [result["verdict"], {each["check"]: each["state"] for each in result["checks"]}]
    return found


@pytest.mark.integration
def test_without_numba_statuses_and_verdicts_are_the_same() -> None:
    code = (
        "import sys, json; sys.modules['numba'] = None; sys.path.insert(0, sys.argv[1])\n"
        "import torch; torch.set_num_threads(1)\n"
        "from test_extras import computed\n"
        "json.dump(computed(), sys.stdout)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    without, with_loops = json.loads(done.stdout), computed()
    assert (without.pop("loops"), with_loops.pop("loops")) == (False, True)
    assert {0, 1} <= set(with_loops["pgd"]["status"])
    assert without.keys() == with_loops.keys()
    for name, expected in with_loops.items():
        if name.startswith(("loss", "logits", "norm")):
            np.testing.assert_allclose(without[name], expected, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)
        else:
            assert without[name] == expected, name


def test_digits_without_scikit_learn_name_the_extra(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    code, out, err = run("data", "show", "--dataset", "digits", "--out", tmp_path / "samples.png")
    assert (code, out) == (2, "")
    assert err.strip().splitlines()[-1].endswith("needs the extra 'study': pip install 'casemate[study]'")
    assert not (tmp_path / "samples.png").exists()

    monkeypatch.setenv("CASEMATE_CACHE", str(tmp_path))
    monkeypatch.setattr(data.fashion_mnist, "load", _not_found)
    with pytest.raises(MissingExtraError, match=r"not found(?s:.*)pip install 'casemate\[study\]'$"):
        data.load("auto", offline=True)

    code, out, err = run("data", "list", "--json")
    assert code == 0, err
    rows = json.loads(out)["data_sets"]
    assert "pip install 'casemate[study]'" in next(row["why"] for row in rows if row["name"] == "digits")


def _not_found(*given: Any, **options: Any) -> Any:
    raise data.DataError("Fashion-MNIST was not found.")


def test_a_history_in_parquet_without_polars_names_the_extra(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    given = ("train", "--dataset", "digits", "--architecture", "tiny", "--out", tmp_path / "m.safetensors")
    code, out, err = run(*given, "--history", "parquet")
    assert (code, out) == (2, "")
    assert err.strip().splitlines()[-1].endswith("needs the extra 'tables': pip install 'casemate[tables]'")
    assert list(tmp_path.iterdir()) == []


def test_pieces_of_the_study_are_compared_alike_without_polars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [catalogued()[name] for name in ("E1", "E6")]
    numbers = [Numbers(left={"ball": 0.4}), Numbers(left={"ball": 0.5}, lost={"ball": 1.0}, loss=0.31)]

    def compared(folder: Path) -> list[Any]:
        shelf = Shelf(folder)
        first, second = (measured(shelf, model, number) for model, number in zip(models, numbers, strict=True))
        found: list[Any] = []
        for measure in ("clean", "ball", "pgd"):
            pair = [
                artifacts[model.artifact(measure, "ce" if measure == "ball" else None)]
                for model, artifacts in zip(models, (first, second), strict=True)
            ]
            axis, value = (None, None) if measure == "clean" else ("eps", 0.1)
            found += [is_correct(artifact, axis, value).tolist() for artifact in pair]
            found.append(compare_accuracy(pair[0], pair[1], axis, value))
            if measure != "pgd":
                found.append(compare_loss(pair[0], pair[1], axis, value))
        return found

    expected = compared(tmp_path / "parquet")
    assert list((tmp_path / "parquet").rglob("*.parquet"))
    monkeypatch.setitem(sys.modules, "polars", None)
    assert compared(tmp_path / "csv") == expected
    assert list((tmp_path / "csv").rglob("*.csv"))
    assert not list((tmp_path / "csv").rglob("*.parquet"))


def test_what_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    from casemate import provenance

    def version(name: str) -> str:
        if name in ("numba", "polars"):
            raise provenance.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(provenance.metadata, "version", version)
    provenance._versions.cache_clear()
    try:
        assert surroundings("cpu", 1)["libraries"].keys() == {"torch", "numpy", "scipy", "safetensors"}
    finally:
        provenance._versions.cache_clear()


@pytest.mark.parametrize("library", ["polars", "numba", "sklearn"])
def test_an_optional_library_is_imported_in_one_place(library: str) -> None:
    source = Path(compiled.__file__).parent
    words = (f"import {library}", f"from {library}")
    lines = ((path, line.strip()) for path in source.rglob("*.py") for line in path.read_text().splitlines())
    found = [path for path, line in lines if line.startswith(words)]
    assert len(found) == 1, found


@pytest.mark.integration
def test_the_command_line_is_there_without_any_extra() -> None:
    code = (
        "import sys\n"
        "for name in ('polars', 'numba', 'sklearn'): sys.modules[name] = None\n"
        "from casemate import PGD, evaluate, fit\n"
        "from casemate.cli.main import main\n"
        "sys.exit(main(['info', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'casemate[study]'" in done.stdout
