"""Training shared by processes that torchrun started: the numbers of one process, one screen, errors, kills."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

import training_group
from casemate.cli.main import main
from casemate.cli.shared import one_screen
from casemate.data import digits
from casemate.defenses import RECIPES
from casemate.errors import ModelError, SettingError, TrainingError
from casemate.hardening import harden
from casemate.models import ModelMetadata, create, save
from casemate.torchrun import Place, is_shared, mark_shared, place, refuse_several
from casemate.training import processes
from casemate.training.processes import ALONE, TrainingGroup, process_group
from conftest import tiny_images, tiny_model
from engine_tasks import is_running

_SEEDS = 6
_SET = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


# --- the place of a process ----------------------------------------------------------------------------------------


def test_the_place_is_read_from_the_environment() -> None:
    assert place({}) == Place()
    assert place({"WORLD_SIZE": "8", "RANK": "3"}) == Place()  # set by something other than torchrun
    assert place(_SET) == Place(rank=1, count=2, local_rank=1)
    assert not place(_SET).is_first
    assert not place(_SET).shows_errors
    second_machine = place(_SET | {"LOCAL_RANK": "0"})
    assert not second_machine.is_first
    assert second_machine.shows_errors


@pytest.mark.parametrize("wrong", [{"RANK": "2"}, {"WORLD_SIZE": "many"}, {"LOCAL_RANK": "-1"}, {"RANK": "0"}])
def test_a_place_that_cannot_be_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(SettingError, match="as torchrun sets"):
        place(_SET | wrong)


@given(size=st.integers(1, 300), count=st.integers(1, 9), least=st.integers(1, 2))
def test_parts_are_the_batch_in_order_and_none_is_too_small(size: int, count: int, least: int) -> None:
    parts = [range(size)[TrainingGroup(Place(rank=rank, count=count)).part(size, least)] for rank in range(count)]
    assert [each for part in parts for each in part] == list(range(size))
    sizes = [len(part) for part in parts if part]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(least, size)
    assert len(sizes) == max(1, min(count, size // least))
    assert len(parts[0]) == max(sizes)


# --- one process ---------------------------------------------------------------------------------------------------


def test_alone_nothing_is_exchanged_and_nothing_changes() -> None:
    with process_group() as group:
        assert group is ALONE
        with group.together(2) as sums:
            sums[:] = [1.5, math.inf]
        assert sums == [1.5, math.inf]
        with pytest.raises(ZeroDivisionError), group.together():
            raise ZeroDivisionError
        assert group.part(7) == slice(0, 7)
        assert group.seed == ()
        assert group.broadcast_bytes(b"x") == b"x"


def test_one_process_of_torchrun_trains_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    before = training_group.SMOOTH["plain"]()
    for name, value in (_SET | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    after = training_group.SMOOTH["plain"]()
    assert all(torch.equal(tensor, after.best[name]) for name, tensor in before.best.items())
    assert after.processes == 1


def test_a_moving_average_keeps_infinite_buffers() -> None:
    done = training_group.SMOOTH["everything"]()
    mask = dict(done.model.named_buffers())["network.mask"]
    assert mask.tolist() == [0.0, -math.inf]


# --- a step of several processes, with a stand-in for the other one ------------------------------------------------


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.elsewhere = nn.Parameter(torch.zeros(1))
        self.unused = nn.Parameter(torch.zeros(3))
        self.register_buffer("seen", torch.tensor([1.0, -torch.inf, 0.1]))
        self.register_buffer("count", torch.tensor(7))
        self.seen: Tensor


def test_a_step_averages_gradients_and_changes_of_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    net = _Net()
    group = TrainingGroup(Place(rank=0, count=2))
    other = torch.tensor([3.0, 4.0, 10.0, 2.0, 0.0, 0.0])  # gradients of weight and elsewhere, change of seen

    def add_other(flat: Tensor, **_: Any) -> None:
        flat += 0.25 * other

    monkeypatch.setattr(processes.dist, "all_reduce", add_other)
    before = group.buffers(net)
    net.weight.grad = torch.tensor([1.0, 2.0])
    net.seen[0] = 5.0
    changes = group.changes(net, before)
    parameters = list(net.parameters())
    group.average_step(parameters, [2.0, 1.0, 0.0], net, before, changes, 0.75)
    assert net.weight.grad.tolist() == [0.75 + 0.75, 1.5 + 1.0]
    assert net.elsewhere.grad is not None
    assert net.elsewhere.grad.tolist() == [2.5]  # only the other process has it
    assert net.unused.grad is None  # so that the optimiser leaves it alone, as in one process
    assert net.seen.tolist() == pytest.approx([1 + 0.75 * 4 + 0.25 * 2, -math.inf, 0.1])
    assert net.seen[2] == torch.tensor(0.1)  # a constant keeps its bits


def test_a_buffer_of_another_shape_is_refused() -> None:
    net = _Net()
    group = TrainingGroup(Place(rank=0, count=2))
    before = group.buffers(net)
    net.seen = torch.zeros(4)
    with pytest.raises(TrainingError, match="buffer seen is another one"):
        group.changes(net, before)


def test_a_lost_connection_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("[/a/b.cc:537] Read error [127.0.0.1]:10: Connection reset by peer. This is caused by")

    monkeypatch.setattr(processes.dist, "all_reduce", fail)
    with pytest.raises(TrainingError) as caught, TrainingGroup(Place(rank=0, count=2)).together():
        pass
    assert "30 minutes (Read error [127.0.0.1]:10: Connection reset by peer). The checkpoint" in str(caught.value)
    assert is_shared(caught.value)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    group = TrainingGroup(Place(rank=1, count=2, local_rank=1))
    with pytest.raises(SettingError, match="--nproc-per-node 1, or choose the device cpu"):
        group.own_device("cuda")
    assert group.own_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(processes, "as_device", torch.device)  # as on a machine with a GPU
    assert group.own_device("cuda:0") == torch.device("cuda:0")  # the user's own choice


# --- one screen ----------------------------------------------------------------------------------------------------


def _set_place(monkeypatch: pytest.MonkeyPatch, rank: int, count: int = 2) -> None:
    for name, value in (_SET | {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(one_screen, "_LEAVES_AFTER", 0.0)


@pytest.mark.parametrize(
    "command",
    ["evaluate m.safetensors", "harden m.safetensors", "info", "store list", "data list", "study", "verify x"],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_other_commands_are_refused_with_the_line_to_type(
    command: str, rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _set_place(monkeypatch, rank)
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    if rank == 0:
        assert err.count("\n") == 1
        assert "torchrun started 2 processes" in err
        assert f"Type: casemate {command}\n" in err
    else:
        assert err == ""


def test_hardening_is_refused_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    _set_place(monkeypatch, 1)
    with pytest.raises(SettingError, match="the whole of a hardening"):
        harden(tiny_model(), tiny_images(60), eps=0.1)


def test_processes_that_are_started_again_do_not_take_the_old_group_for_theirs() -> None:
    store = torch.distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    for _ in range(2):  # the second time the store holds what the first group wrote
        with ThreadPoolExecutor(3) as pool:
            started = [
                pool.submit(processes._name_of_group, store, Place(rank=rank, count=3, local_rank=rank))
                for rank in (2, 1)  # the first process comes last, so that the others find the old name
            ]
            time.sleep(0.2)
            name = processes._name_of_group(store, Place(rank=0, count=3))
            assert {each.result() for each in started} == {name}


def test_without_torchrun_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_several("x", "y")
    _set_place(monkeypatch, 0, 1)
    refuse_several("x", "y")


@pytest.mark.parametrize("command", ["train --recipe nonsense", "--version", "--help", "nonsense"])
def test_what_all_processes_print_is_printed_by_one(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> int | str | None:
        try:
            return main(command.split())
        except SystemExit as end:
            return end.code

    codes = []
    for rank in (0, 1):
        _set_place(monkeypatch, rank)
        codes.append(run())
        assert (capsys.readouterr() != ("", "")) == (rank == 0)
    assert codes[0] == codes[1]


def test_an_error_of_one_process_only_is_printed_by_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _set_place(monkeypatch, 1)
    one_screen.print_once(ModelError("mine"), "mine")
    assert "mine" in capsys.readouterr().err
    one_screen.print_once(mark_shared(ModelError("ours")), "ours")
    assert capsys.readouterr().err == ""


def test_an_environment_that_cannot_be_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _set_place(monkeypatch, 0)
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert main(["train"]) == 2
    assert "WORLD_SIZE = 'two' in the environment" in capsys.readouterr().err


# --- real processes ------------------------------------------------------------------------------------------------


def _torchrun(count: int, *arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """Start torchrun on this machine, with `count` processes of one thread each."""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, *arguments]
    return subprocess.Popen(
        [str(word) for word in words],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def _finished(started: "subprocess.Popen[str]", seconds: float = 240) -> tuple[int, str, str]:
    out, err = started.communicate(timeout=seconds)
    return started.returncode, out, err


def _tensors(folder: Path, name: str, rank: int = 0) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / f"{name}-{rank}.safetensors")


def _facts(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"{name}-{rank}.json").read_text())


def _untimed(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in history]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process ends in."""
    folder = tmp_path_factory.mktemp("alone")
    for name, train in training_group.SMOOTH.items():
        training_group.write(folder, name, train())
    return folder


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """The number of processes, and the folder of what they ended in."""
    folder = tmp_path_factory.mktemp(f"group{request.param}")
    code, _, err = _finished(_torchrun(request.param, training_group.__file__, folder))
    assert code == 0, err
    return request.param, folder


@pytest.mark.integration
@pytest.mark.parametrize("name", training_group.SMOOTH)
def test_several_processes_end_in_the_weights_of_one(name: str, group: tuple[int, Path], alone: Path) -> None:
    count, folder = group
    expected, found = _tensors(alone, name), _tensors(folder, name)
    assert expected.keys() == found.keys()
    for entry, tensor in expected.items():
        torch.testing.assert_close(found[entry], tensor, rtol=0, atol=2e-5, msg=entry)
    before, after = _facts(alone, name), _facts(folder, name)
    assert after["ends"] == [*before["ends"][:3], count]
    for one, several in zip(before["history"], after["history"], strict=True):
        for column in ("learning_rate", "loss", "accuracy", "val_loss", "val_accuracy"):
            assert several[column] == pytest.approx(one[column], abs=1e-5), column


@pytest.mark.integration
@pytest.mark.parametrize("name", [*training_group.SMOOTH, *RECIPES, "not resumed"])
def test_all_processes_end_in_the_same_bits(name: str, group: tuple[int, Path]) -> None:
    count, folder = group
    first = _tensors(folder, name)
    for rank in range(1, count):
        other = _tensors(folder, name, rank)
        assert first.keys() == other.keys()
        for entry, tensor in first.items():
            assert torch.equal(other[entry], tensor), (entry, rank)
        assert _facts(folder, name, rank) == _facts(folder, name)
    assert all(math.isfinite(row["loss"]) for row in _facts(folder, name)["history"])


@pytest.mark.integration
def test_a_finished_checkpoint_of_the_first_process_is_enough_for_all(group: tuple[int, Path]) -> None:
    count, folder = group
    for rank in range(count):
        resumed, plain = _tensors(folder, "resumed", rank), _tensors(folder, "not resumed", rank)
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in plain.items())
    assert _untimed(_facts(folder, "resumed")["history"]) == _untimed(_facts(folder, "not resumed")["history"])


@pytest.mark.integration
def test_an_error_in_one_process_is_raised_in_all(group: tuple[int, Path]) -> None:
    count, folder = group
    found = [json.loads((folder / f"errors-{rank}.json").read_text()) for rank in range(count)]
    assert all(each.keys() == training_group.ERRORS.keys() for each in found)
    for name in training_group.ERRORS:
        texts = [each[name] for each in found]
        if name == "a bug":
            assert texts.pop(1) == "ZeroDivisionError: a bug"  # where it is, with its traceback
        assert len(set(texts)) == 1, texts
    first = found[0]
    assert first["in one"] == f"ModelError: process 1 of {count}: this objective does not go on"
    assert first["a bug"] == f"TrainingError: process 1 of {count}: ZeroDivisionError: a bug"
    assert "its images, settings, objective or augmentations are not those of process 0" in first["other images"]
    assert "its network's layers are not those of process 0" in first["another network"]
    assert first["not finite"].startswith("TrainingError: the loss (epoch 1, step ")
    assert first["no images"] == "ShapeError: 1 training images; expected at least 2"


@pytest.mark.integration
@pytest.mark.slow
def test_two_processes_reach_the_accuracies_of_one_within_the_noise_of_seeds(tmp_path: Path) -> None:
    code, _, err = _finished(_torchrun(2, training_group.__file__, tmp_path, _SEEDS))
    assert code == 0, err
    two = np.array(json.loads((tmp_path / "accuracies-0.json").read_text()))
    one = np.array([training_group.accuracies(seed) for seed in range(_SEEDS)])
    for column, kind in enumerate(("clean", "robust")):
        differences = two[:, column] - one[:, column]
        half = stats.t.ppf(0.975, _SEEDS - 1) * differences.std(ddof=1) / math.sqrt(_SEEDS)
        noise = one[:, column].std(ddof=1)
        said = f"{kind}: {differences.mean():.2f} +- {half:.2f} points, n = {_SEEDS}; seeds differ by {noise:.2f}"
        assert abs(differences.mean()) <= 2 * half + 0.1, said
        assert abs(differences.mean()) <= noise + 0.1, said
        assert one[:, column].mean() > 60, said  # there is something to lose: chance is 33


# --- the command ---------------------------------------------------------------------------------------------------

_IMAGES = ("--dataset", "digits", "--train-images", 150, "--validation-images", 40)


def _train(*arguments: object, count: int = 2, options: Sequence[object] = (), **other: Any) -> "subprocess.Popen[str]":
    # "--" since torchrun takes --start for an abbreviation of an option of its own
    return _torchrun(count, *options, "-m", "--", "casemate", "train", *_IMAGES, *arguments, **other)


def _weights(path: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(path)


def _workers(started: "subprocess.Popen[str]") -> dict[int, int]:
    """The processes that torchrun has started: their process ids by rank (Linux only)."""
    found: dict[int, int] = {}
    for pid in map(int, Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()):
        with suppress(OSError):
            rank = re.search(rb"\0RANK=(\d+)\0", b"\0" + Path(f"/proc/{pid}/environ").read_bytes())
            if rank is not None:
                found[int(rank[1])] = pid
    return found


def _wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def _changed(path: Path) -> Callable[[], bool]:
    """Whether a file has been replaced, or made, since now."""

    def number() -> int:
        try:
            return path.stat().st_ino
        except OSError:
            return 0

    before = number()
    return lambda: number() not in (before, 0)


@pytest.mark.integration
def test_the_command_writes_one_set_of_files_and_one_document(tmp_path: Path) -> None:
    found = digits.load()
    teacher = create("paper-cnn", input_shape=found.image_shape, classes=found.classes)
    save(teacher, tmp_path / "teacher.safetensors", ModelMetadata(architecture="paper-cnn", dataset="digits"))
    words = ("--recipe", "distillation", "--teacher", tmp_path / "teacher.safetensors", "--temperature", 5)
    before = {each.name for each in tmp_path.iterdir()}
    code, out, err = _finished(_train(*words, "--epochs", 2, "--out", tmp_path / "a.safetensors", "--json"))
    assert code == 0, err
    shown = json.loads(out)
    assert shown["processes"] == 2
    assert len(shown["history"]) == 2
    assert len(shown["notes"]) == 1  # the temperature is not the teacher's
    assert "error:" not in err
    about = json.loads((tmp_path / "a.json").read_text())
    assert about["metrics"]["provenance"]["processes"] == 2
    files = {each.name for each in tmp_path.iterdir()} - before
    assert files == {"a.safetensors", "a.json", "a.history.csv"}


@pytest.mark.integration
def test_an_error_in_one_process_ends_the_command_with_one_line(tmp_path: Path) -> None:
    words = ("--start", f"{training_group.__file__}:FailsInOneProcess", "--epochs", 2, "--size", 28)
    code, out, err = _finished(_train(*words, "--out", tmp_path / "a.safetensors", count=3))
    assert code != 0
    assert out == ""
    said = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(said) == 1, err
    assert "process 1 of 3: " in said[0]
    assert "no memory of the second process" in said[0]
    ends = re.findall(r"exitcode *: (-?\d+)", err)  # torchrun ends those that wait for it
    assert "2" in ends, err
    assert set(ends) <= {"2", str(-signal.SIGTERM)}, err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
@pytest.mark.slow
def test_kills_of_processes_change_nothing_in_the_weights(tmp_path: Path) -> None:
    undisturbed, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    checkpoint = tmp_path / "b.safetensors.training"
    words = ("--epochs", 8, "--recipe", "adversarial-training", "--steps", 2, "--ema", 0.9)
    code, _, err = _finished(_train(*words, "--out", undisturbed))
    assert code == 0, err

    killed = _train(*words, "--out", out)
    _wait_for(checkpoint.exists)
    workers = _workers(killed)
    os.kill(workers[1], signal.SIGKILL)
    code, shown, err = _finished(killed)
    assert code != 0
    assert shown == ""
    assert not any(map(is_running, workers.values()))
    assert not out.exists()

    resumed = _train(*words, "--out", out, options=("--max-restarts", 1))
    _wait_for(_changed(checkpoint))
    os.kill(_workers(resumed)[0], signal.SIGKILL)  # torchrun starts all processes again
    code, shown, err = _finished(resumed)
    assert code == 0, err
    assert shown.count("Test accuracy") == 1
    before, after = _weights(undisturbed), _weights(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert {each.name for each in tmp_path.iterdir()} == {
        f"{name}.{end}" for name in "ab" for end in ("safetensors", "json", "history.csv")
    }


@pytest.mark.integration
def test_ctrl_c_stops_all_processes_with_one_line(tmp_path: Path) -> None:
    checkpoint = tmp_path / "a.safetensors.training"
    started = _train("--epochs", 1000, "--out", tmp_path / "a.safetensors")
    _wait_for(checkpoint.exists)
    workers = _workers(started)
    started.send_signal(signal.SIGINT)
    code, out, err = _finished(started, 60)
    assert code != 0
    assert out == ""
    assert err.count("stopped: finished work is kept; run the same command again to continue.") == 1
    assert "error:" not in err
    assert not any(map(is_running, workers.values()))
    assert [each.name for each in tmp_path.iterdir()] == [checkpoint.name]
