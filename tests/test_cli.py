"""The command line: help without PyTorch, exit codes and messages, JSON, files written, progress."""

import contextlib
import ctypes
import hashlib
import io
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import polars
import pytest
import safetensors.torch
import torch
from rich.console import Console
from rich.table import Table

import casemate as package
from casemate import data
from casemate.attacks import EOT
from casemate.attacks.registry import attack_types
from casemate.cli import main
from casemate.cli.attack import run as attacking
from casemate.cli.info import Info
from casemate.cli.shared import augmentations, console, observers, options, outputs, sigint
from casemate.cli.train import base_models
from casemate.cli.train import run as training
from casemate.data.named import AUGMENTATIONS, make_augmentation
from casemate.defenses import RECIPES
from casemate.engine import Store, code_version
from casemate.errors import DataError, ModelError, SettingError
from casemate.files import write_json
from casemate.models import ModelMetadata, create, load, save
from casemate.training import cost
from casemate_study.experiments.defended import REGULARIZATION
from casemate_study.experiments.scales import SCALES
from conftest import Listener
from test_study import SMOKE, TINY, Run, casemate, finished, runner

LIGHT = [
    [],
    ["study"],
    ["report"],
    ["verify"],
    ["info"],
    ["data"],
    ["data", "list"],
    ["data", "fetch"],
    ["data", "show"],
    ["store"],
    ["store", "list"],
    ["store", "clean"],
]
"""Commands whose help imports no PyTorch."""
WITH_TORCH = [
    ["train"],
    ["harden"],
    ["attack"],
    ["attack", "pgd"],
    ["attack", "deep-fool"],
    ["evaluate"],
    ["certify"],
    ["compare"],
    ["selftest"],
]
"""Commands whose options are those of the library's classes."""
COMMANDS = LIGHT + WITH_TORCH
HELP = f"""
    import contextlib, io, json, sys
    from casemate.cli.main import main
    shown = []
    def show(commands):
        for command in commands:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                try:
                    main([*command, "--help"])
                except SystemExit as left:
                    assert left.code in (0, None), left.code
            shown.append(out.getvalue())
    show({LIGHT!r})
    heavy = ["torch", "numpy", "scipy", "matplotlib", "polars", "sklearn", "safetensors", "jinja2"]
    found = [name for name in heavy if name in sys.modules]
    show({WITH_TORCH!r})
    found += [name for name in ("scipy.stats", "scipy.optimize", "matplotlib") if name in sys.modules]
    print(json.dumps([shown, found]))
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(capsys)


@pytest.fixture(scope="module")
def helps() -> tuple[dict[str, str], list[str]]:
    """The help of every command at 80 columns, and the heavy packages that showing it has imported."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HELP)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"COLUMNS": "80", "PATH": "", "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
    )
    shown, heavy = json.loads(done.stdout)
    return dict(zip((" ".join(command) for command in COMMANDS), shown, strict=True)), heavy


@pytest.mark.integration
def test_the_help_of_casemate_imports_no_pytorch(helps: tuple[dict[str, str], list[str]]) -> None:
    assert helps[1] == []


@pytest.mark.parametrize("command", [" ".join(command) for command in COMMANDS])
def test_help_fits_80_columns_and_has_examples(helps: tuple[dict[str, str], list[str]], command: str) -> None:
    text = helps[0][command]
    assert text.startswith(f"usage: casemate {command}".rstrip())
    # all but the usage, which tyro does not break
    assert [line for line in text.splitlines()[1:] if len(line) > 80] == []
    examples = text.split("Examples:\n")[1].split("\n\n")[0]
    assert 1 <= examples.count("  casemate ") <= 5
    assert "\n\n\n" not in text


@pytest.mark.integration
def test_every_example_is_parsed(helps: tuple[dict[str, str], list[str]]) -> None:
    for text in helps[0].values():
        examples = re.sub(r"\\\n\s+", "", text.split("Examples:\n")[1].split("\n\n")[0])
        for line in examples.splitlines():
            # the words before the command are those of torchrun
            words = re.sub(r"^torchrun .* -m -- ", "", line.strip()).split("   ")[0].split()
            assert words[0] == "casemate"
            main.parse(words[1:])


@pytest.mark.parametrize("how", [["-m", "casemate"], ["-c", "from casemate.cli.main import main; main()"]])
def test_the_version(how: list[str]) -> None:
    done = subprocess.run([sys.executable, *how, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"casemate {package.__version__}\n"


def test_no_arguments_show_the_help(run: Run) -> None:
    code, out, _ = run()
    assert code == 0
    assert "usage: casemate" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stduy"], "casemate 'stduy': expected a command first, one of train, harden, attack"),
        (["stduy"], "did you mean study?"),
        (["study", "--scale", "huge"], "invalid choice 'huge' for argument '--scale'"),
        (["study", "--sed", "3"], "Perhaps you meant"),
        (["study", "--dataset", "cifar", "--dry-run"], "unknown data set 'cifar'; known: auto, fashion-mnist, digits"),
        (["study", "--seed", "x"], "invalid literal for int"),
        (["train", "--optimizer", "lion"], "invalid choice 'lion'"),
        (["attack", "pgd"], "Missing from casemate attack pgd: MODEL"),
        (["data", "fetsh"], "expected a command first, one of list, fetch, show; did you mean fetch?"),
        (["attack", "fgms", "m.safetensors"], "unknown attack 'fgms'; known: alma, apgd, auto-attack,"),
        (["attack", "fgms", "m.safetensors"], "did you mean fgsm?"),
        (["attack", "m.safetensors"], "The attack comes before the model: casemate attack ATTACK MODEL"),
        (["attack", "--eps", "0.1", "pgd"], "expected an attack first, one of alma, apgd, "),
        (["attack", "m.safetensors", "--attack", "pgd"], "--attack is no longer an option: write the attack before"),
        (["attack", "pgd", "--model-from", "a:b"], "--model-from is no longer an option: write the function in the"),
        (["evaluate", "--model-from=a:b"], "--model-from is no longer an option: write the function in the place of"),
        (["verify", "r.json", "--model-from", "a:b"], "--model-from is no longer an option"),
        (["train", "--defense", "none"], "--defense is no longer an option: write --recipe NAME"),
        (["train", "--recipe", "adversarial-trainin"], "did you mean adversarial-training?"),
        (["attack", "fgsm", "m.safetensors", "--steps", "3"], "Unrecognized options: --steps, 3"),
        (["attack", "deep-fool", "m.safetensors", "--target", "3"], "Unrecognized options: --target, 3"),
        (["train", "--schedule", "steep"], "schedule = 'steep'; expected constant, linear, cosine, one-cycle"),
    ],
)
def test_a_fault_in_the_arguments_is_2(run: Run, arguments: list[str], words: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2
    assert words in " ".join(err.replace("│", " ").split())
    assert out == ""


def _refused(run: Run, *arguments: object) -> str:
    """The message of a command that the user can fix: one screen on stderr, no traceback, exit code 2."""
    code, out, err = run(*arguments)
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    message = " ".join(err.split("error: ", 1)[-1].replace("│", " ").split())
    assert len(message) < 1500
    return message


@pytest.fixture
def broken_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package whose commands, facts and producers cannot be imported."""
    (tmp_path / "broken_commands.py").write_text("raise RuntimeError('needs another release')\n")
    (tmp_path / "broken_group").mkdir()
    (tmp_path / "broken_group" / "__init__.py").write_text('"""Its options are broken."""\n')
    (tmp_path / "broken_group" / "options.py").write_text("import broken_commands\n")
    installed = tmp_path / "broken_package-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-package\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        "[casemate.commands]\nbreak=broken_commands\nhalf=broken_group\n[casemate.info]\nbreak=broken_commands:facts\n"
        "[casemate.producers]\nbreak=broken_commands:PRODUCERS\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("broken_group", "broken_group.options"):
        sys.modules.pop(name, None)


BROKEN = "of the package broken-package cannot be loaded: importing broken_commands"


@pytest.mark.usefixtures("broken_package")
def test_a_broken_command_of_another_package_is_left_out_of_the_help(run: Run) -> None:
    code, out, err = run("--help")
    assert code == 0
    assert f"a command is left out: 'break' {BROKEN} raised RuntimeError: needs another release" in err
    assert "break" not in out.split("subcommands")[1]
    assert re.search(r"half +Its options are broken", out)
    assert re.search(r"study +Reproduce the paper", out)


@pytest.mark.usefixtures("broken_package")
def test_a_broken_command_of_another_package_says_what_is_wrong(run: Run) -> None:
    assert f"'break' {BROKEN} raised RuntimeError: needs another release" in _refused(run, "break", "--help")
    assert "of the package broken-package cannot be loaded: importing broken_group.options" in _refused(run, "half")
    code, out, err = run("store", "--help")
    assert (code, err) == (0, "")
    assert "List and clean" in out


@pytest.mark.usefixtures("broken_package")
def test_broken_extensions_are_left_out_of_the_facts_and_protect_the_store(run: Run, tmp_path: Path) -> None:
    """Without its producer every artifact would look stale, and be removed."""
    code, out, err = run("info", "--json")
    assert code == 0
    assert BROKEN in err
    assert "experiments" in json.loads(out)
    assert BROKEN in _refused(run, "store", "clean", "--store", tmp_path / "store")


def test_an_unknown_experiment_has_a_hint(run: Run) -> None:
    assert "unknown experiment 'e2'; known: E1, " in _refused(run, *SMOKE, "--only", "E1", "e2")
    assert "did you mean E2?" in _refused(run, "report", "--only", "e2")


@pytest.mark.parametrize("command", [["study", "--scale", "smoke"], ["study", "--scale", "smoke", "--dry-run"]])
def test_an_out_folder_that_is_a_file_is_refused_at_once(
    run: Run, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*args: object) -> None:
        raise AssertionError("PyTorch is loaded before the folder is looked at")

    monkeypatch.setattr(options, "load_torch", too_late)
    (tmp_path / "out").touch()
    store = tmp_path / "store"
    assert "is a file, but a folder is expected" in _refused(run, *command, "--store", store, "--out", tmp_path / "out")
    assert not store.exists()


def test_a_folder_that_cannot_be_written_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert "Permission denied; choose another --out" in _refused(run, *SMOKE[:3], "--out", tmp_path / "out")


@pytest.mark.parametrize("fault", ["cut short", "damaged", "missing"])
def test_data_that_cannot_be_trusted(run: Run, tmp_path: Path, fault: str) -> None:
    if fault == "cut short":
        import gzip

        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(9999))[:-12])
        words = "cannot be decompressed"
    elif fault == "damaged":
        with (tmp_path / "train-images-idx3-ubyte").open("wb") as file:  # right in size, wrong in content
            file.truncate(47_040_016)
        words = "does not match its checksum"
    else:
        words = "expected all four files"
    command = ["study", "--dataset", "auto", "--data-dir", tmp_path, "--store", tmp_path / "store", "--dry-run"]
    assert words in _refused(run, *command)
    code, out, _ = run("data", "list", "--data-dir", tmp_path)
    assert code == 0
    assert "not found" in out
    assert words in " ".join(out.split())  # a table wraps where the path is long


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(run: Run) -> None:
    assert "PyTorch finds no GPU" in _refused(run, *SMOKE[:3], "--dry-run", "--device", "cuda")


def test_no_threads(run: Run) -> None:
    assert "threads = 0; expected at least 1" in _refused(run, *SMOKE[:3], "--dry-run", "--threads", "0")


def _no_large_files() -> None:
    """As on a full disk: no file may grow beyond 40 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))


@pytest.mark.integration
def test_a_full_disk_says_so_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    process = casemate(*SMOKE, "--only", "E1", "--store", tmp_path, preexec_fn=_no_large_files)
    _, err = finished(process, code=2)
    assert "error: cannot write" in err
    assert "File too large" in err
    assert "Traceback" not in err
    assert Store(tmp_path).artifacts() == []
    assert [path for path in (tmp_path / "artifacts").iterdir() if not path.name.startswith(".")] == []


@pytest.mark.integration
def test_a_second_writer_is_told_of_the_first(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCALES, "smoke", replace(SCALES["smoke"], **TINY))
    plan = json.loads(run(*SMOKE, "--store", tmp_path, "--dry-run", "--json")[1])
    with Store(tmp_path).lock_for(plan["artifacts"][0]["key"]):
        message = _refused(run, *SMOKE, "--store", tmp_path)
    assert "another process (pid" in message
    assert "wait for it and run the same command again, or use another store" in message


@pytest.mark.parametrize("arguments", [["--help"], ["store", "list"], ["store", "list", "--json"], ["--version"]])
def test_a_reader_that_leaves_is_no_error(tmp_path: Path, arguments: list[str]) -> None:
    where = ["--store", tmp_path] if arguments[0] == "store" else []
    process = casemate(*arguments, *where)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.wait(timeout=60)
    assert process.returncode == 0
    err = process.stderr.read()
    process.stderr.close()
    assert err == ""


def test_an_unexpected_fault_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(Store, "artifacts", lambda self: fail())
    with pytest.raises(ZeroDivisionError, match="ours"):
        run("store", "list")


DIGITS = tuple("0123456789")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small untrained network for the digits."""
    network = create("tiny", input_shape=(1, 28, 28), classes=DIGITS, seed=3)
    return save(network, tmp_path / "model.safetensors", ModelMetadata(architecture="tiny", dataset="digits"))


def test_an_attack_tells_what_is_left_at_each_eps(run: Run, model: Path) -> None:
    code, out, err = run("attack", "bim", model, "--eps", "0.1", "8/255", "0", "--images", 30, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["eps"] == [0, 8 / 255, 0.1]
    assert found["attack"]["name"] == "BIM"
    assert "eps" not in found["attack"]
    assert [point["eps"] for point in found["points"]] == found["eps"]
    worst = [point["worst"]["value"] for point in found["points"]]
    assert worst == sorted(worst, reverse=True)
    assert all(point["no_gradient"]["n"] == 30 for point in found["points"])
    assert found["passes"]["backward"] > 0

    code, out, _ = run("attack", "bim", model, "--eps", "0.1", "8/255", "0", "--images", 30)
    assert code == 0
    assert "BIM on model.safetensors (digits, first 30 test images, seed 0)" in out
    assert [line.split()[0] for line in out.splitlines() if "(" in line][1:4] == ["0", "8/255", "0.1"]


def test_an_attack_leaves_its_examples(run: Run, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "found"
    code, shown, err = run(
        "attack", "pgd", model, "--eps", "8/255", "--steps", 3, "--images", 12, "--out", out, "--json"
    )
    assert code == 0, err
    result = json.loads((out / "result.json").read_text())
    assert json.loads(shown).items() <= result.items()
    assert result["provenance"]["device"] == result["device"]
    examples = polars.read_parquet(out / "examples.parquet")
    assert {"index", "label", "eps", "worst", "status", "prediction"} <= set(examples.columns)
    assert len(examples) == 12
    images = safetensors.torch.load_file(out / "adversarial.safetensors")
    assert images.keys() == {"clean", "labels", "eps-0.0313725"}
    assert (images["eps-0.0313725"] - images["clean"]).abs().max() <= 8 / 255 + 1e-6


def test_a_targeted_attack_spares_the_target_s_own_images(run: Run, model: Path, tmp_path: Path) -> None:
    arguments = ["attack", "pgd", model, "--target", "3", "--eps", "0.3", "0.1", "--steps", 2, "--images", 40]
    code, out, err = run(*arguments, "--out", tmp_path / "found", "--json")
    assert code == 0, err
    found = json.loads(out)
    labels = data.load("digits").test.labels[:40]
    assert found["target"] == "3"
    assert found["images"] == int((labels != 3).sum())
    assert [point["eps"] for point in found["points"]] == [0.1, 0.3]
    assert {"reached", "still_right", "loss", "no_gradient"} <= found["points"][0].keys()
    examples = polars.read_parquet(tmp_path / "found" / "examples.parquet")
    assert 3 not in examples["label"]
    assert set(examples["target"]) == {3}
    assert len(examples) == 2 * found["images"]
    assert "Target reached" in run(*arguments)[1]


@pytest.mark.integration
def test_another_attack_is_not_replaced(run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "found"
    command = ["attack", "pgd", model, "--eps", "8/255", "--steps", 2, "--images", 8, "--out", out]
    assert run(*command)[0] == 0
    held = {path.name: path.read_bytes() for path in out.iterdir()}
    assert held.keys() == {"result.json", "examples.parquet", "adversarial.safetensors", "contact-sheet.png"}
    with monkeypatch.context() as patch:
        patch.setattr(attacking, "run", lambda *given, **options: pytest.fail("attacked all the same"))
        for changed, words in (
            (["--seed", 1], "(seed 0, now 1)"),
            (["--images", 9], "(images 8, now 9; other images or labels)"),
            (["--steps", 3], "(attack {"),
            (["--target", "3"], "target not given, now 3"),
            (["--inference", "stochastic-affine"], "(inference not given, now stochastic-affine"),
        ):
            message = " ".join(_refused(run, *command, *changed).split())
            assert f"{out} holds an attack on {model} (digits, eps 0.0313725, seed 0), and an attack on" in message
            assert words in message
            assert "choose another --out, or give --overwrite to replace it" in message
        network = create("tiny", input_shape=(1, 28, 28), classes=DIGITS, seed=4)
        before = model.read_bytes(), model.with_suffix(".json").read_bytes()
        save(network, model, ModelMetadata(architecture="tiny", dataset="digits"))
        assert "(other weights)" in _refused(run, *command)
        model.write_bytes(before[0])
        model.with_suffix(".json").write_bytes(before[1])
        assert {path.name: path.read_bytes() for path in out.iterdir()} == held
    code, _, err = run(*command)
    assert code == 0
    assert "the results of the same run; they are replaced" in " ".join(err.split())
    (out / "record.json").write_text("of an older evaluation")
    assert run(*command, "--seed", 1, "--overwrite")[0] == 0
    assert {path.name for path in out.iterdir()} == held.keys()
    assert json.loads((out / "result.json").read_text())["seed"] == 1


@pytest.mark.integration
def test_an_attack_that_looks_for_the_nearest_image_runs_once(run: Run, model: Path) -> None:
    arguments = ["attack", "deepfool", model, "--norm", "linf", "--eps", "0.3", "0.001", "--images", 12]
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [point["eps"] for point in found["points"]] == [0.001, 0.3]
    assert found["points"][0]["worst"]["value"] >= found["points"][1]["worst"]["value"]
    assert found["points"][1]["worst"]["value"] < 0.5
    assert found["points"][1]["distance"]["value"] > 0
    assert "Mean distance of adversarial images" in run(*arguments)[1]


def test_an_attack_without_eps_has_one_row(run: Run, model: Path, tmp_path: Path) -> None:
    code, out, err = run("attack", "spatial", model, "--images", 5, "--out", tmp_path / "found", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["eps"], [point["eps"] for point in found["points"]]) == ([], [None])
    images = safetensors.torch.load_file(tmp_path / "found" / "adversarial.safetensors")
    assert images.keys() == {"clean", "labels", "adversarial"}
    assert (tmp_path / "found" / "contact-sheet.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run("attack", "spatial", model, "--eps", "0.1")
    assert code == 2
    assert "Unrecognized options" in err


def test_kept_weights_are_saved_beside_the_model(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    _, recipe = _trained(run, out, *SMALL, "--architecture", "tiny", "--save-epochs", 1, 2)
    assert recipe["save_epochs"] == [1, 2]
    kept = [load(tmp_path / f"m.epoch-00{epoch}.safetensors")[0] for epoch in (1, 2)]
    final = load(out)[0].state_dict()
    assert all(weights.equal(final[name]) for name, weights in kept[1].state_dict().items())
    assert not all(weights.equal(final[name]) for name, weights in kept[0].state_dict().items())


def test_a_refused_attack_leaves_no_folder(run: Run, model: Path, tmp_path: Path) -> None:
    _refused(run, "attack", "pgd", model, "--target", "Shirt", "--out", tmp_path / "new" / "found")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changed", "held", "words"),
    [
        ({}, {}, None),
        ({"scale": "full"}, {}, "(scale quick, now full)"),
        ({"seed": 1}, {}, "(seed 0, now 1)"),
        ({"dataset": "fashion-mnist"}, {}, "(dataset digits, now fashion-mnist)"),
        ({"dataset": "fashion-mnist"}, {"fallback_for": "Fashion-MNIST"}, None),
        ({"scale": "full"}, {"fallback_for": "Fashion-MNIST"}, "(scale quick, now full)"),
    ],
)
def test_the_report_of_another_study_is_not_replaced(
    tmp_path: Path, listener: Listener, changed: dict[str, Any], held: dict[str, Any], words: str | None
) -> None:
    about = {"scale": "quick", "dataset": "digits", "seed": 0}
    outputs.check_report(tmp_path, about, overwrite=False, observer=listener)
    write_json(tmp_path / "summary.json", about | held)
    outputs.check_report(tmp_path, about | changed, overwrite=True, observer=listener)
    assert listener.said == []
    with contextlib.nullcontext() if words is None else pytest.raises(SettingError, match=re.escape(words)):
        outputs.check_report(tmp_path, about | changed, overwrite=False, observer=listener)
    assert len(listener.said) == (words is None)
    (tmp_path / "summary.json").unlink()
    (tmp_path / "report.html").touch()
    with pytest.raises(SettingError, match=r"holds report.html, but no summary.json with their settings; the report"):
        outputs.check_report(tmp_path, about, overwrite=False, observer=listener)


def test_a_training_replaces_no_file_beside_its_model(run: Run, tmp_path: Path) -> None:
    for name in ("result.json", "result.history.csv"):
        (tmp_path / name).write_text("of something else")
        message = _refused(run, *TRAIN, "--out", tmp_path / "result.safetensors")
        assert f"{name} exists already; choose another --out, or give --overwrite" in message
        (tmp_path / name).unlink()


def test_a_planned_attack_attacks_nothing(run: Run, model: Path, tmp_path: Path) -> None:
    arguments = ["attack", "pgd", model, "--images", 10, "--eps", "0.1", "0.2", "--restarts", 2, "--dry-run"]
    code, out, _ = run(*arguments, "--out", tmp_path / "found", "--json")
    assert code == 0
    assert json.loads(out)["gradients"] == 10 * 2 * 40 * 2
    assert "at most 1,600" in run(*arguments)[1]
    assert not (tmp_path / "found").exists()


AVERAGE = "--" + next(each.name for each in fields(EOT) if each.name != "attack").replace("_", "-")
"""The option of averaged gradients, which is the field of `EOT`."""
BEHIND = ["--steps", 2, "--eps", "0.1", "0.05", "--images", 12, "--inference", "stochastic-affine"]


def _timeless(found: str) -> dict[str, Any]:
    """The printed JSON without what it took."""
    return {name: value for name, value in json.loads(found).items() if name != "seconds"}


@pytest.mark.integration
@pytest.mark.parametrize("more", [[], ["--target", "3"]])
def test_a_randomised_model_answers_the_same_to_the_same_command(run: Run, model: Path, more: list[str]) -> None:
    def found(*arguments: object) -> dict[str, Any]:
        code, out, err = run("attack", "bim", model, *BEHIND, *more, *arguments, "--json")
        assert code == 0, err
        return _timeless(out)

    before = torch.get_rng_state()
    first = found()
    torch.rand(3)
    assert found() == first
    assert found("--seed", 1)["points"] != first["points"]
    assert first["inference"] == "stochastic-affine"
    assert first["attack"]["keep"] == "last"  # a lucky answer on the way must not end an attack
    assert first["passes"]["backward"] == 2 * 2 * first["images"] - (0 if more else first["images"])
    torch.set_rng_state(before)
    run("attack", "bim", model, *BEHIND)
    assert torch.get_rng_state().equal(before)


def test_one_gradient_is_said_to_flatter_a_randomised_model(run: Run, model: Path) -> None:
    code, out, err = run("attack", "bim", model, *BEHIND)
    assert code == 0, err
    assert "BIM on model.safetensors with stochastic-affine (digits, first 12" in out
    notes = [line for line in out.splitlines() if line.startswith("Note: ")]
    assert len(notes) == 2
    assert "worst any wrong one at an intermediate iterate" in notes[0]
    assert "a single gradient makes a randomised defence look more robust than it is" in notes[1]
    assert notes == [
        line for line in run("attack", "bim", model, *BEHIND, "--dry-run")[1].splitlines() if "Note" in line
    ]
    assert "Note" not in run("attack", "bim", model, *BEHIND[:-2])[1]


def test_draws_average_the_gradient(run: Run, model: Path) -> None:
    code, out, err = run("attack", "bim", model, *BEHIND, AVERAGE, 3, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["attack"]["name"], found["eot_samples"]) == ("BIM", 3)
    assert "eps" not in found["attack"]
    assert found["passes"]["backward"] == 3 * 12 * 3  # the first gradient serves both values of eps
    assert not any("a single gradient" in note for note in found["notes"])
    planned = json.loads(run("attack", "bim", model, *BEHIND, AVERAGE, 3, "--dry-run", "--json")[1])
    assert planned["gradients"] == 12 * 2 * 2 * 3
    assert f"BIM, {AVERAGE[2:].replace('-', ' ')} 3 on model" in run("attack", "bim", model, *BEHIND, AVERAGE, 3)[1]
    assert "eot_samples = 0; expected at least 1" in _refused(run, "attack", "bim", model, *BEHIND, AVERAGE, 0)


def test_parts_are_given_by_name_with_settings(run: Run, model: Path) -> None:
    parts = "--parts", "variance-tuning:samples=2,beta=0.5", "scaled-copies:copies=2", "momentum"
    code, out, err = run("attack", "bim", model, *BEHIND, *parts, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["attack"]["name"], found["eot_samples"]) == ("BIM", None)
    assert found["parts"] == [
        {"name": "Momentum", "decay": 1.0},
        {"name": "ScaledCopies", "copies": 2},
        {"name": "VarianceTuning", "samples": 2, "beta": 0.5},
    ]
    assert json.loads(run("attack", "bim", model, *BEHIND, "--json")[1])["parts"] is None
    assert "parts Momentum, ScaledCopies, VarianceTuning on model" in run("attack", "bim", model, *BEHIND, *parts)[1]
    for text, words in (
        ("nesterof", "unknown part 'nesterof'; known: momentum, nesterov, scaled-copies, input-diversity"),
        ("nesterov", "Nesterov for an attack without momentum"),
        ("scaled-copies:copies", "'copies' is not SETTING=VALUE (no spaces); scaled-copies has copies (5)"),
        ("nesterov:length=2", "nesterov has no settings"),
        ("translation-kernel:size=4", "size = 4; expected an odd number"),
    ):
        assert words in " ".join(_refused(run, "attack", "bim", model, *BEHIND, "--parts", text).split())


def test_noise_layers_can_be_left_on(run: Run, model: Path, tmp_path: Path) -> None:
    network = create("paper-cnn-noise", input_shape=(1, 28, 28), classes=DIGITS)
    noisy = save(
        network, tmp_path / "noisy.safetensors", ModelMetadata(architecture="paper-cnn-noise", dataset="digits")
    )
    arguments = ["--eps", "0.1", "--images", 8]
    losses = [
        json.loads(run("attack", "fgsm", noisy, *arguments, *more, "--json")[1])["points"][0]["loss"]["value"]
        for more in ([], ["--inference", "noise"], ["--inference", "noise", AVERAGE, 2])
    ]
    assert len(set(losses)) == 3
    message = _refused(run, "attack", "fgsm", model, *arguments, "--inference", "noise")
    assert "without a noise layer; expected one with, such as paper-cnn-noise" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--eps", "-0.1"], "eps = -0.1; expected zero or more and finite"),
        (["--eps", "much"], "eps 'much' is not a number; write 0.03 or 8/255"),
        (["--eps", "8/0"], "eps '8/0' is not a number"),
        (["--steps", "0"], "steps = 0; expected at least 1"),
        (["--images", "0"], "images = 0; expected at least 1"),
        (["--target", "Shirt"], "target 'Shirt'; expected an index from 0 to 9 or one of 0, 1"),
        (["--target", "10"], "target '10'"),
    ],
)
def test_a_bad_attack_is_refused(run: Run, model: Path, arguments: list[str], words: str) -> None:
    assert words in _refused(run, "attack", "pgd", model, *arguments)


def _spoilt(model: Path, fault: str) -> tuple[Path, str]:
    """A model with a fault, and what the message says of it."""
    sidecar = model.with_suffix(".json")
    facts = json.loads(sidecar.read_text())
    match fault:
        case "another architecture":
            write_json(sidecar, facts | {"architecture": "paper-cnn"})
            return model, "contains the weights of another network"
        case "unknown architecture":
            write_json(sidecar, facts | {"architecture": "resnet"})
            return model, "not registered here; known: "
        case "pickle":
            model.write_bytes(pickle.dumps({"weights": [1.0]}))
            return model, "is a pickle"
        case "cut short":
            model.write_bytes(model.read_bytes()[:-100])
            return model, "is not a complete safetensors file"
        case "changed":
            raw = bytearray(model.read_bytes())
            raw[-1] ^= 1
            model.write_bytes(raw)
            return model, "does not match its sidecar"
        case "alone":
            sidecar.unlink()
            return model, "is missing"
        case "absent":
            return model.with_name("other.safetensors"), "does not exist"
        case "unknown data":
            write_json(sidecar, facts | {"dataset": "imagenet"})
            return model, "or --dataset with one of fashion-mnist, digits"
        case "other classes":
            write_json(sidecar, facts | {"classes": list("abcdefghij")})
            return model, "choose the data set it was trained on"
    raise ValueError(fault)


@pytest.mark.parametrize(
    "fault",
    [
        "another architecture",
        "unknown architecture",
        "pickle",
        "cut short",
        "changed",
        "alone",
        "absent",
        "unknown data",
        "other classes",
    ],
)
def test_a_model_that_cannot_be_loaded(run: Run, model: Path, fault: str) -> None:
    path, words = _spoilt(model, fault)
    assert words in _refused(run, "attack", "pgd", path, "--eps", "0.1")


TRAIN = ["train", "--dataset", "digits", "--architecture", "tiny", "--train-images", 120, "--validation-images", 40]
TRAIN += ["--augment", "shift", "alternating-flip", "--ema", 0.9, "--epochs", 2, "--batch-size", 40]


@pytest.mark.integration
def test_a_training_leaves_model_sidecar_and_history(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "new" / "m.safetensors"
    code, shown, err = run(*TRAIN, "--out", out, "--json")
    assert code == 0, err
    found = json.loads(shown)
    assert [row["epoch"] for row in found["history"]] == [1, 2]
    assert found["accuracy"]["n"] == found["test_images"] == 450
    assert found["train_images"] == 120
    assert sorted(path.name for path in out.parent.iterdir()) == ["m.history.csv", "m.json", "m.safetensors"]
    sidecar = json.loads(out.with_suffix(".json").read_text())
    assert sidecar["recipe"]["augment"] == [
        {"name": "shift", "settings": {"pixels": 1}},
        {"name": "alternating-flip", "settings": {}},
    ]
    assert sidecar["recipe"]["objective"] == {"name": "cross-entropy", "settings": {"label_smoothing": 0.0}}
    assert sidecar["metrics"]["test_accuracy"] == found["accuracy"]
    history = polars.read_csv(out.with_name("m.history.csv"))
    assert history["val_loss"].to_list() == [row["val_loss"] for row in found["history"]]

    message = _refused(run, *TRAIN, "--out", out)
    assert "exists already; choose another --out, or give --overwrite" in message
    code, shown, _ = run(*TRAIN, "--out", out, "--overwrite", "--history", "parquet")
    assert code == 0
    assert "Test accuracy" in shown
    assert polars.read_parquet(out.with_name("m.history.parquet"))["val_loss"].equals(history["val_loss"])
    code, shown, err = run("attack", "pgd", out, "--eps", "0.05", "--images", 20)
    assert code == 0, err


@pytest.mark.integration
def test_a_stopped_training_goes_on_where_it_was(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    assert run(*TRAIN, "--out", whole)[0] == 0

    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate_clean", stop)
        code, _, err = run(*TRAIN, "--out", stopped)
    assert code == 130
    assert err.splitlines()[-1] == "stopped: finished work is kept; run the same command again to continue."
    assert [path.name for path in tmp_path.glob("stopped*")] == ["stopped.safetensors.training"]
    assert "belongs to a training with other settings" in _refused(run, *TRAIN, "--out", stopped, "--seed", 1)
    assert run(*TRAIN, "--out", stopped)[0] == 0
    assert stopped.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.glob("stopped*")) == [
        "stopped.history.csv",
        "stopped.json",
        "stopped.safetensors",
    ]


def test_a_ctrl_c_that_was_made_into_another_error_stops_as_well(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 does that to one that comes while a class is made, `from` it; others while they handle it."""

    def wrapped() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as stop:
            raise RuntimeError("Error calling __set_name__") from stop

    def chained() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise OSError("the clean-up failed")

    def unrelated() -> None:
        try:
            raise ValueError("seen")
        finally:
            raise OSError("the clean-up failed")

    def taken_for_a_fault_of_the_model() -> None:
        try:
            wrapped()
        except RuntimeError as error:
            raise ModelError("the model fails") from error

    def without_a_reader() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise BrokenPipeError

    for fault in (wrapped, chained, taken_for_a_fault_of_the_model, without_a_reader):
        monkeypatch.setattr(Info, "run", lambda self, fault=fault: fault())
        code, _, err = run("info")
        assert (code, err) == (130, "stopped: with Ctrl-C.\n")

    def circular() -> None:
        error = OSError("the clean-up failed")
        raise error from error

    for fault in (unrelated, circular):
        monkeypatch.setattr(Info, "run", lambda self, fault=fault: fault())
        with pytest.raises(OSError, match="clean-up failed"):
            run("info")


def _in_a_callback() -> None:
    """Ctrl-C in what C code calls, where the interpreter drops every exception."""

    def interrupted(first: Any, second: Any) -> int:
        signal.raise_signal(signal.SIGINT)
        return 0

    numbers = (ctypes.c_int * 2)(2, 1)
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    ctypes.CDLL(None).qsort(numbers, 2, ctypes.sizeof(ctypes.c_int), kind(interrupted))


def _caught() -> None:
    """Ctrl-C in a library that catches whatever comes."""
    with contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGINT)


def _as_another_error() -> None:
    """Ctrl-C while a class is created, as Python 3.11 reports it, in a library that tries an import."""
    try:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise RuntimeError("Error calling __set_name__") from error
    except Exception:
        return


@pytest.fixture
def listening() -> Iterator[None]:
    """Ctrl-C stops this process, also where it was started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("drop", [_in_a_callback, _caught, _as_another_error])
def test_a_ctrl_c_that_was_dropped_comes_again(
    run: Run, monkeypatch: pytest.MonkeyPatch, drop: Callable[[], None]
) -> None:
    reached: list[str] = []

    def interrupted(self: Info) -> None:
        drop()
        reached.append("after it")
        for _ in range(1000):
            time.sleep(0.01)
        reached.append("the end")

    monkeypatch.setattr(Info, "run", interrupted)
    monkeypatch.setattr(sigint, "_DELAY", 0.5)
    code, _, err = run("info")
    assert (code, err) == (130, "stopped: with Ctrl-C.\n")
    assert reached == ["after it"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("ending", [None, ValueError("another")])
def test_a_ctrl_c_that_was_dropped_at_the_end_stops_the_command(
    run: Run, monkeypatch: pytest.MonkeyPatch, ending: Exception | None
) -> None:
    def interrupted(self: Info) -> None:
        _caught()
        if ending is not None:
            raise ending

    monkeypatch.setattr(Info, "run", interrupted)
    monkeypatch.setattr(sigint, "_DELAY", 60)
    code, _, err = run("info")
    assert (code, err) == (130, "stopped: with Ctrl-C.\n")


@pytest.mark.usefixtures("listening")
def test_cleaning_up_after_a_ctrl_c_is_not_interrupted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def interrupted(self: Info) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            time.sleep(0.3)
            done.append("cleaned up")

    monkeypatch.setattr(Info, "run", interrupted)
    code, _, _ = run("info")
    assert (code, done) == (130, ["cleaned up"])


@pytest.mark.integration
def test_a_planned_training_trains_nothing(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "new" / "m.safetensors"
    code, shown, _ = run("train", "--dataset", "digits", "--epochs", 7, "--out", out, "--dry-run", "--json")
    plan = json.loads(shown)
    assert code == 0
    assert (plan["train_images"], plan["validation_images"], plan["epochs"]) == (1078, 269, 7)
    assert plan["seconds_left"] > 0
    assert " about " in run(*TRAIN, "--out", out, "--dry-run")[1]
    assert not out.parent.exists()


SMALL = ["--dataset", "digits", "--train-images", 60, "--validation-images", 20, "--epochs", 2, "--batch-size", 30]
REGULARISED = ["--recipe", "adversarial-regularization"]


def _trained(run: Run, out: Path, *arguments: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train; what was printed as JSON, and the recipe written beside the model."""
    code, shown, err = run("train", *arguments, "--out", out, "--json")
    assert code == 0, err
    return json.loads(shown), json.loads(out.with_suffix(".json").read_text())["recipe"]


def test_a_saved_model_is_hardened_by_adversarial_regularisation(run: Run, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "hard.safetensors"
    own = ["--multiplier", "1/9", "--step-size", "0.1", "--clip-min", "0.25", "--clip-max", "none", "--iterations", 2]
    changed = ["--extra", "gaussian-blur:sigma=2", "--augment", "affine:rotation=90,sometimes=0.5", "flip"]
    found, recipe = _trained(run, out, *SMALL, "--start", model, *REGULARISED, *own, *changed)
    assert recipe["objective"] == {
        "name": "adversarial-regularization",
        "settings": {
            "multiplier": 1 / 9,
            "step_size": 0.1,
            "norm": "linf",
            "clip_min": 0.25,
            "clip_max": None,
            "iterations": 2,
            "pgd_eps": None,
            "random_start": False,
        },
    }
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert recipe["start"] == {"file": str(model), "sha256": digest}
    assert recipe["extra"] == [{"name": "gaussian-blur", "settings": {"size": 3, "sigma": 2.0}}]
    affine = {"name": "affine", "settings": {"rotation": 90.0, "shift": 0.1, "scale": 0.1}, "share": 0.5}
    assert recipe["augment"] == [affine, {"name": "flip", "settings": {"horizontal": 0.5, "vertical": 0.5}}]
    assert {name: found[name] for name in ("objective", "extra", "augment", "start")}.items() <= recipe.items()
    assert found["architecture"] == "tiny"

    # the same from Python: the start model's weights, the images of `extra`, the objective
    digits = data.load("digits")
    parts = data.split(data.subset(digits.train, 80, 0), 20, 0)
    by_hand = package.Recipe(
        objective=package.AdversarialRegularization(**recipe["objective"]["settings"]),
        extra=tuple(map(make_augmentation, recipe["extra"])),
        augment=tuple(map(make_augmentation, recipe["augment"])),
    ).fit(load(model)[0], *parts, package.TrainConfig(epochs=2, batch_size=30))
    for name, weights in load(out)[0].state_dict().items():
        assert weights.equal(by_hand.model.state_dict()[name]), name
    assert [row["val_loss"] for row in found["history"]] == [row["val_loss"] for row in by_hand.history]


def test_the_adversarial_validation_loss_is_called_that(run: Run, model: Path, tmp_path: Path) -> None:
    arguments = ["train", *SMALL, "--start", model, "--out", tmp_path / "hard.safetensors", "--overwrite"]
    shown = run(*arguments, *REGULARISED, "--multiplier", "0.3")[1]
    assert "Val. adv. loss" in shown
    assert "Loss: of the images plus 0.3 times that of their adversarial neighbours." in shown
    assert "Lowest adversarial validation loss after epoch" in shown
    shown = run(*arguments)[1]
    assert "Val. adv. loss" not in shown
    assert "Lowest validation loss after epoch" in shown


def test_the_defaults_of_the_regularisation_are_the_paper_s_within_the_pixels_bounds(run: Run, tmp_path: Path) -> None:
    arguments = ["train", *SMALL, *REGULARISED, "--out", tmp_path / "m.safetensors", "--dry-run", "--json"]
    objective = json.loads(run(*arguments)[1])["objective"]
    library = vars(package.AdversarialRegularization(**REGULARIZATION, clip_max=1.0)) | {"clip_min": 0.0}
    del library["feature_mask"]
    assert objective == {"name": "adversarial-regularization", "settings": library}


@pytest.mark.integration
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_by_its_defaults(run: Run, model: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "trained.safetensors"
    few = ["--dataset", "digits", "--train-images", 60, "--validation-images", 20, "--epochs", 1, "--batch-size", 30]
    given = [] if RECIPES[name].teacher is None else ["--teacher", model]
    code, shown, err = run("train", *few, "--architecture", "tiny", "--recipe", name, *given, "--out", out)
    assert code == 0, err
    assert "after epoch 1; saved: the weights after epoch 1." in " ".join(shown.split())
    assert load(out)[1].recipe["objective"]["name"] == name


@pytest.mark.integration
def test_a_teacher_and_its_student(run: Run, tmp_path: Path) -> None:
    teacher, student = tmp_path / "teacher.safetensors", tmp_path / "student.safetensors"
    at = ["--architecture", "tiny", "--recipe", "at-temperature"]
    _, recipe = _trained(run, teacher, *SMALL, *at, "--temperature", 7)
    assert recipe["objective"] == {"name": "at-temperature", "settings": {"temperature": 7.0}}
    assert (recipe["start"], recipe["teacher"]) == (None, None)

    learn = ["--recipe", "distillation", "--teacher", teacher, "--architecture", "student-8x1"]
    found, recipe = _trained(run, student, *SMALL[2:], *learn)
    assert found["dataset"] == "digits"  # which is the teacher's
    assert recipe["objective"] == {"name": "distillation", "settings": {"temperature": 7.0}}
    assert recipe["teacher"]["sha256"] == hashlib.sha256(teacher.read_bytes()).hexdigest()
    assert found["notes"] == []
    assert load(student)[1].architecture == "student-8x1"
    code, shown, err = run("train", *SMALL, *learn, "--temperature", 2, "--out", student, "--overwrite")
    assert code == 0, err
    assert "Loss and val. loss: cross-entropy to the teacher's probabilities at temperature 2." in shown
    assert "Note: teacher.safetensors was trained at temperature 7, but its soft labels are at 2" in shown
    assert "cross-entropy at temperature 20." in run("train", *SMALL, *at, "--out", teacher, "--overwrite")[1]


@pytest.mark.parametrize(
    ("recipe", "temperature"),
    [
        ({"objective": {"name": "at-temperature", "settings": {"temperature": 30.0}}}, 30.0),
        ({"objective": {"name": "cross-entropy", "settings": {"label_smoothing": 0.0}}}, 1.0),
        ({"objective": "a word of somebody else's"}, 1.0),
        ({}, 1.0),
    ],
)
def test_the_temperature_of_a_teacher(recipe: dict[str, Any], temperature: float) -> None:
    assert base_models.trained_at(ModelMetadata(architecture="tiny", dataset="digits", recipe=recipe)) == temperature


@pytest.mark.integration
def test_a_stopped_distillation_goes_on_where_it_was(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--architecture", "tiny", "--recipe", "distillation", "--teacher", model, "--extra", "flip"]
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    _trained(run, whole, *SMALL, *arguments)

    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate_clean", stop)
        assert run("train", *SMALL, *arguments, "--out", stopped)[0] == 130
    for more in (["--temperature", 3], ["--extra", "flip:vertical=0"]):
        message = _refused(run, "train", *SMALL, *arguments, *more, "--out", stopped)
        assert "belongs to a training with other settings" in message
    _trained(run, stopped, *SMALL, *arguments)
    assert stopped.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(("patience", "epoch"), [([], 3), (["--patience", 1], 1), (["--patience", 9], 1)])
def test_patience_saves_the_best_weights_even_if_it_never_runs_out(
    run: Run, tmp_path: Path, patience: list[object], epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter(range(10))

    def worse(*args: object) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(float(next(losses))), torch.zeros(20, 10)

    monkeypatch.setattr(package.CrossEntropy, "validate", worse)
    out, short = tmp_path / "m.safetensors", tmp_path / "short.safetensors"
    found, _ = _trained(run, out, *SMALL, "--architecture", "tiny", "--epochs", 3, *patience)
    assert found["best_epoch"] == 1
    assert found["epoch"] == epoch
    assert json.loads(out.with_suffix(".json").read_text())["metrics"]["epoch"] == epoch
    _trained(run, short, *SMALL, "--architecture", "tiny", "--epochs", epoch)
    assert out.read_bytes() == short.read_bytes()


@pytest.mark.integration
def test_a_planned_defence_tells_its_settings_and_its_time(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "_second_call", lambda run, device: 15.0)  # on 30 images, the size of a batch
    out = tmp_path / "m.safetensors"
    paper = create("paper-cnn", input_shape=(1, 28, 28), classes=DIGITS)
    teacher = save(paper, tmp_path / "t.safetensors", ModelMetadata(architecture="paper-cnn", dataset="digits"))

    def seconds(*arguments: object) -> float:
        return json.loads(run("train", *SMALL, *arguments, "--out", out, "--dry-run", "--json")[1])["seconds_left"]

    assert seconds() == 0.5 * 2 * (60 + 20)
    assert seconds("--extra", "flip", "shift") == 0.5 * 2 * (3 * 60 + 20)
    assert seconds("--recipe", "distillation", "--teacher", model) == 0.5 * 2 * (60 + 20)
    robust = ["--recipe", "adversarial-training"]
    assert seconds(*robust) == 0.5 * 2 * (60 + 20)
    assert seconds(*robust, "--monitor", "robust-accuracy", "--ema", 0.9) == 0.5 * 2 * (60 + 2 * 20)
    first = 0.5 * 20  # the guard measures before the first epoch too
    assert seconds("--recipe", "fgsm-rs") == first + 0.5 * 2 * (60 + 2 * 20)
    assert seconds("--recipe", "fgsm-rs", "--ema", 0.9) == first + 0.5 * 2 * (60 + 3 * 20)

    monkeypatch.setenv("COLUMNS", "80")
    changes = ["--augment", "affine:rotation=90", "flip:sometimes=0.5", "--start", teacher]
    code, shown, _ = run("train", *SMALL, *REGULARISED, *changes, "--out", out, "--dry-run")
    plan = " ".join(shown.split())
    assert code == 0
    assert "adversarial-regularization: multiplier 0.5, step-size 0.2, norm linf" in plan
    assert "affine:rotation=90,shift=0.1,scale=0.1 flip:horizontal=0.5,vertical=0.5,sometimes=0.5" in plan
    assert "sha256" not in plan
    assert max(map(len, shown.splitlines())) <= 80
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--multiplier", "0.3"],
            "--recipe cross-entropy has no --multiplier; choose --recipe adversarial-regularization",
        ),
        (
            ["--teacher", "t.safetensors"],
            "--recipe cross-entropy has no --teacher; choose --recipe distillation or robust-distillation, or",
        ),
        (["--temperature", "3"], "choose --recipe at-temperature or distillation, or leave it out"),
        ([*REGULARISED, "--temperature", "3"], "--recipe adversarial-regularization has no --temperature"),
        ([*REGULARISED, "--label-smoothing", "0.1"], "has no --label-smoothing; choose --recipe cross-entropy"),
        (["--recipe", "at-temperature", "--random-start", "--norm", "l2"], "has no --random-start, --norm; choose"),
        (["--recipe", "distillation"], "Missing from casemate train --recipe distillation: --teacher MODEL"),
        (["--recipe", "distillation", "--teacher", "absent.safetensors"], "absent.safetensors does not exist"),
        (["--recipe", "at-temperature", "--temperature", "0"], "temperature = 0.0; expected positive"),
        ([*REGULARISED, "--step-size", "far"], "Error parsing --step-size: 'far' is not a number; write 0.2 or 8/255"),
        ([*REGULARISED, "--step-size=-1/255"], "step_size = -0.0039"),
        ([*REGULARISED, "--multiplier", "inf"], "Error parsing --multiplier: 'inf' is not a number"),
        ([*REGULARISED, "--clip-min", "2"], "clip_min = 2.0; expected less than clip_max, 1.0"),
        ([*REGULARISED, "--iterations", "0"], "iterations = 0; expected at least 1"),
        ([*REGULARISED, "--norm", "l1", "--pgd-eps", "0.1"], "NSL defines no projection there"),
        (["--start", "absent.safetensors"], "absent.safetensors does not exist"),
        (["--augment", "flp"], "unknown augmentation 'flp'; known: alternating-flip, flip, "),
        (["--extra", "flp"], "did you mean flip?"),
        (["--augment", "affine:turn=3"], "affine has no setting 'turn'; it has rotation (15), shift (0.1), scale"),
        (["--augment", "affine:share=0.5"], "affine has no setting 'share'; it has rotation (15), shift (0.1), scale"),
        (["--augment", "affine:rotation"], "'rotation' is not SETTING=VALUE (no spaces); affine has rotation (15)"),
        (["--augment", "affine:rotation=9,", "shift=1"], "'' is not SETTING=VALUE (no spaces)"),
        (["--augment", "affine:rotation=x"], "rotation 'x' is not a number"),
        (["--augment", "affine:rotation=999"], "'affine:rotation=999': rotation = 999.0; expected degrees"),
        (["--augment", "shift:pixels=1.5"], "pixels = 1.5; expected a whole number"),
        (["--augment", "flip:sometimes=2"], "expected sometimes to be a fraction of the images, from 0 to 1"),
        (["--augment", "flip", "speckle:sometimes=0.5,std=-1"], "std = -1.0; expected from 0 to 1000"),
    ],
)
def test_a_bad_defence_is_refused(run: Run, tmp_path: Path, arguments: list[str], words: str) -> None:
    assert words in _refused(run, "train", *SMALL, *arguments, "--out", tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_models_that_a_training_cannot_build_on(run: Run, model: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "m.safetensors"]
    message = _refused(run, "train", *SMALL, "--start", model, "--architecture", "paper-cnn", *out)
    assert "contains a tiny, but a paper-cnn is expected" in message
    message = _refused(run, "train", *SMALL, "--start", model, "--out", model, "--overwrite")
    assert "is the --start itself, which must stay; choose another --out" in message
    for role in (["--start"], ["--recipe", "distillation", "--teacher"]):
        path, _ = _spoilt(model, "other classes")
        message = _refused(run, "train", *SMALL, *role, path, *out)
        assert f"given as {role[-1]}, has the classes a, b, c, ..., but scikit-learn digits has 0, 1, 2, ..." in message
    small = create("tiny", input_shape=(1, 8, 8), classes=DIGITS)
    save(small, tmp_path / "small.safetensors", ModelMetadata(architecture="tiny", dataset="letters"))
    message = _refused(run, "train", *SMALL, "--start", tmp_path / "small.safetensors", *out)
    assert "has images of shape 1, 8, 8, but scikit-learn digits has 1, 28, 28" in message
    message = _refused(run, "train", "--start", tmp_path / "small.safetensors", *out)
    assert "the saved model was trained on 'letters'; give --dataset, one of fashion-mnist, digits" in message
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("flip", {"name": "flip", "settings": {"horizontal": 0.5, "vertical": 0.5}}),
        ("shift:pixels=2", {"name": "shift", "settings": {"pixels": 2}}),
        ("gaussian-noise:std=8/255", {"name": "gaussian-noise", "settings": {"std": 8 / 255}}),
        ("alternating-flip:sometimes=0.5", {"name": "alternating-flip", "settings": {}, "share": 0.5}),
        (
            "salt-and-pepper:share=0.2,sometimes=0.5",
            {"name": "salt-and-pepper", "settings": {"share": 0.2}, "share": 0.5},
        ),
    ],
)
def test_a_change_is_read_and_written(text: str, spec: dict[str, Any]) -> None:
    assert augmentations.read_augmentation(text) == spec
    if "/" not in text:
        assert augmentations.read_augmentation(augmentations.write_augmentation(spec)) == spec


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "0"], "epochs = 0; expected at least 1"),
        (["--learning-rate", "-1"], "learning_rate = -1"),
        (["--label-smoothing", "2"], "label_smoothing = 2"),
        (["--ema", "1"], "ema = 1"),
        (["--train-images", "0"], "train-images = 0"),
        (["--train-images", "1300", "--validation-images", "100"], "but scikit-learn digits has 1347"),
        (["--validation-images", "1347"], "set aside at least 1, but not all"),
        (["--architecture", "paper-cn"], "paper-cnn"),
        (["--out", "model.pt"], "models are saved as .safetensors"),
    ],
)
def test_a_bad_training_is_refused(run: Run, tmp_path: Path, arguments: list[str], words: str) -> None:
    where = [] if "--out" in arguments else ["--out", tmp_path / "m.safetensors"]
    assert words in _refused(run, "train", "--dataset", "digits", *where, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_model_cannot_go_where_a_folder_or_a_file_is_in_the_way(run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").mkdir()
    (tmp_path / "file").touch()
    assert "is a folder; name a file" in _refused(run, *TRAIN, "--out", tmp_path / "m.safetensors")
    assert "is a file, but a folder" in _refused(run, *TRAIN, "--out", tmp_path / "file" / "m.safetensors")


def _piece(store: Store, key: str, *, code: str = "0") -> None:
    facts = {"kind": "curve", "name": f"E9/{key}", "config": {"dataset": "digits"}, "code": code, "result": {}}
    with store.put(key, facts | {"provenance": {"finished": "2026-01-01T00:00:00+00:00", "seconds": 65.0}}) as folder:
        (folder / "data.bin").write_bytes(bytes(5000))


def test_the_store_is_listed_and_cleaned(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    _piece(store, "old")
    _piece(store, "new", code=code_version("casemate_study.tasks.measurements"))
    with contextlib.suppress(RuntimeError), store.lock_for("begun") as working:
        (working / "checkpoint").write_bytes(bytes(700))
        raise RuntimeError

    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run("store", "list", "--store", tmp_path)
    assert code == 0
    states = {line.split()[0]: line.split()[-1] for line in out.splitlines() if "E9/" in line}
    assert states == {"E9/old": "stale", "E9/new": "current"}
    assert "2 artifacts (1 stale)" in out
    assert "1 folders, 700 bytes, unfinished or damaged" in out
    assert all(len(line) <= 80 for line in out.splitlines() if "E9/" in line)
    listed = json.loads(run("store", "list", "--store", tmp_path, "--json")[1])
    assert {artifact["name"]: artifact["current"] for artifact in listed["artifacts"]} == {
        "E9/old": False,
        "E9/new": True,
    }
    assert {"kind", "key", "bytes", "finished", "seconds"} <= listed["artifacts"][0].keys()

    planned = json.loads(run("store", "clean", "--store", tmp_path, "--dry-run", "--json")[1])
    assert planned["bytes"] > 5700
    assert {Path(each["path"]).name for each in planned["removed"]} == {"old", "begun"}
    assert len(store.artifacts()) == 2
    with store.lock_for("old"):
        code, out, _ = run("store", "clean", "--store", tmp_path)
        assert code == 0
        assert "kept: E9/old (old) is in use by another process" in out
    assert len(store.artifacts()) == 2
    assert not (tmp_path / "working" / "begun").exists()
    code, out, _ = run("store", "clean", "--store", tmp_path)
    assert "bytes freed" in out
    assert [artifact.key for artifact in store.artifacts()] == ["new"]
    assert json.loads(run("store", "clean", "--store", tmp_path, "--all", "--json")[1])["bytes"] >= 5000
    assert store.artifacts() == []


def test_info_names_what_is_there(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASEMATE_STORE", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("CASEMATE_DATA", str(tmp_path))
    code, out, _ = run("info", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["casemate"] == package.__version__
    assert facts["store"] == str(tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
    assert {"paper-cnn", "paper-student"} <= set(facts["networks"])
    assert set(facts["attacks"]) == set(attack_types())
    assert set(facts["recipes"]) == set(RECIPES)
    assert facts["augmentations"].keys() == AUGMENTATIONS.keys()
    assert facts["augmentations"]["affine"] == {"rotation": 15.0, "shift": 0.1, "scale": 0.1}
    assert {each["name"]: each["found"] for each in facts["data_sets"]} == {
        "fashion-mnist": None,
        "digits": "scikit-learn",
    }
    shown = run("info")[1]
    assert "paper-cnn" in shown
    assert "affine:rotation=15,shift=0.1,scale=0.1" in shown


def test_sample_images_are_drawn(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "new" / "digits.png"
    code, shown, err = run("data", "show", "--dataset", "digits", "--per-class", 3, "--out", out)
    assert code == 0, err
    assert shown.strip() == str(out)
    assert out.read_bytes().startswith(b"\x89PNG")
    assert "ending in .png" in _refused(run, "data", "show", "--out", tmp_path / "digits.jpg")
    assert "per-class = 0" in _refused(run, "data", "show", "--per-class", 0)


def test_data_that_is_there_is_not_fetched(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []

    def load(name: str, data_dir: Path | None = None, *, offline: bool = False, observer: object) -> data.Dataset:
        calls.append(offline)
        if offline and len(calls) == 3:
            raise DataError("nowhere")
        return replace(data.digits.load(), origin="/somewhere/good")

    monkeypatch.setattr(data, "load", load)
    code, out, _ = run("data", "fetch")
    assert code == 0
    assert "nothing to download: /somewhere/good" in out
    assert json.loads(run("data", "fetch", "--json")[1])["fetched"] is False
    assert json.loads(run("data", "fetch", "--json")[1])["fetched"] is True
    assert calls == [True, True, True, False]
    monkeypatch.undo()
    monkeypatch.setenv("CASEMATE_DATA", str(tmp_path))
    assert "CASEMATE_DATA names this folder; unset it to download" in _refused(run, "data", "fetch")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (61, "1 min 01 s"),
        (3599, "1 h 00 min"),
        (3661, "1 h 01 min"),
        (90000, "25 h 00 min"),
    ],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert console.duration(seconds) == words


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The observers' clock, set by hand."""
    clock = Clock()
    monkeypatch.setattr(observers, "_now", clock)
    return clock


def test_lines_come_at_most_every_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with observers.watching() as observer, observer.work("Training", 100) as advance:
        for second in range(1, 41):
            clock.now += 1
            advance(1, f"step {second}")
        observer.message("by the way")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Training: 2 %, 1 min 38 s left, step 2",
        "Training: 12 %, 1 min 28 s left, step 12",
        "Training: 22 %, 1 min 18 s left, step 22",
        "Training: 32 %, 1 min 08 s left, step 32",
        "by the way",
        "Training: done in 40 s",
    ]


def test_quick_work_prints_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with observers.watching() as observer:
        for _ in range(20):
            with observer.work("Classifying", 10) as advance:
                clock.now += 1
                advance(10, "")
    assert capsys.readouterr().err == ""


def test_what_a_resumed_training_had_done_does_not_count_as_speed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with observers.watching() as observer, observer.work("Training", 50) as advance:
        advance(40, "resumed after epoch 40")
        clock.now += 20
        advance(1, "epoch 41")
    assert capsys.readouterr().err.splitlines()[0] == "Training: 82 %, 3 min 00 s left, epoch 41"


def _screen(draw: Callable[[Any], None]) -> str:
    """What a live display writes to a terminal of 80 columns."""
    file = io.StringIO()
    live = observers._Live(Console(file=file, force_terminal=True, width=80, color_system=None))
    draw(live)
    live.close()
    return file.getvalue()


def test_the_live_display_nests_and_stays_within_the_screen(clock: Clock) -> None:
    def draw(live: Any) -> None:
        with live.work("Study", 10) as outer:
            outer(0, "1 of 2: E3/range/torch-ce")
            for _ in range(2):
                with live.work("Training, 50 epochs, with a title that is far too long for the screen", 4) as inner:
                    for epoch in (1, 2):
                        clock.now += 2500
                        inner(1, f"epoch {epoch}, loss 0.1234")
                    outer(1, "")
                    live._progress.refresh()
            live.message("WARNING: something")

    text = _screen(draw)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.replace("\r", "\n"))
    lines = [line.rstrip() for line in plain.splitlines()]
    (study,) = {line for line in lines if line.startswith("Study: 1 of 2: E3/range/torch-ce") and " 20% " in line}
    assert study.endswith(" 20% 2:46:40 left 11:06:40")
    assert any(line.startswith("Training") and line.endswith(" 50% 1:23:20 left 1:23:20") for line in lines)
    assert max(map(len, lines)) <= 77
    assert "WARNING: something" in text


def test_work_side_by_side_has_a_bar_each_that_stays_in_its_place(clock: Clock) -> None:
    def draw(live: Any) -> None:
        with live.work("Study", 10) as whole:
            first, second = live.side_by_side(2)
            with first.work("E1/train", 4) as one, second.work("E5/train", 2) as other:
                clock.now += 60
                one(1, "epoch 1, loss 0.5")
                other(1, "epoch 1, loss 0.9")
                live._progress.refresh()
            with second.work("E5/clean", 2), second.work("Classifying", 100) as nested:
                nested(50, "never shown")
                first.message("E1/train: by the way")
                live._progress.refresh()
            whole(10, "2 of 2 finished")

    text = _screen(draw)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.replace("\r", "\n"))
    lines = [line.rstrip() for line in plain.splitlines()]
    place = next(number for number, line in enumerate(lines) if line.startswith("E1/train: epoch 1, loss 0.5"))
    assert " 25% " in lines[place]
    assert lines[place + 1].startswith("E5/train: epoch 1, loss 0.9")
    assert " 50% " in lines[place + 1]
    later = next(number for number, line in enumerate(lines) if line.startswith("E5/clean: Classifying"))
    assert lines[later - 1].startswith("waiting")
    assert "never shown" not in text
    assert "E1/train: by the way" in text
    assert max(map(len, lines)) <= 77


def test_a_reader_that_leaves_ends_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises(BrokenPipeError):
        console.show(Table("a"))
