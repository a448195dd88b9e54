"""Tasks computed side by side by worker processes: results, failures, kills, and that nothing is left behind."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import FGSM, PGD, prepare_for_attack
from casemate.data import LabelledImages
from casemate.engine import Artifact, Context, Processes, Producer, Store, Task, make_plan, run_plan
from casemate.engine import workers as workers_module
from casemate.engine.answers import packed, unpacked
from casemate.errors import MachineError, ModelError, StoreError, TrainingError
from casemate.evaluation import cascade as cascade_module
from casemate.evaluation import steps as steps_module
from casemate.evaluation.cascade import run_cascade
from casemate.evaluation.pieces import Piece
from casemate.evaluation.shards import shard_bounds, speedup_at_most
from casemate.evaluation.steps import Step, StepJob, StepSetup, step_setup
from casemate.models import as_model, numeric_settings, numeric_settings_as, open_model
from casemate.models.sources.query_count import QueryCount
from casemate.progress import NULL_OBSERVER
from conftest import Listener
from engine_tasks import is_running, locked

PRODUCERS = {"add": Producer("casemate.losses", "engine_tasks:produce")}


def _task(name: str, needs: dict[str, str] | None = None, **config: Any) -> Task:
    return Task(name=name, kind="add", config={"value": 1, **config}, needs=needs or {})


def _run(tmp_path: Path, tasks: list[Task], observer: Any = NULL_OBSERVER, workers: int = 2) -> dict[str, Artifact]:
    store = Store(tmp_path)
    plan = make_plan(tasks, [task.name for task in tasks], PRODUCERS, store, "cpu")
    return run_plan(plan, PRODUCERS, store, Context("cpu", observer), engine=Processes(workers=workers))


def _finished(tmp_path: Path, tasks: list[Task]) -> set[str]:
    return set(make_plan(tasks, [task.name for task in tasks], PRODUCERS, Store(tmp_path), "cpu").artifacts)


CHAIN = [
    _task("a"),
    _task("b", {"model": "a"}, value=10),
    _task("c", {"model": "b"}, value=100),
    _task("d", value=1000),
    _task("e", {"x": "d", "y": "c"}, value=10000),
]


def test_workers_compute_what_one_process_computes(tmp_path: Path, listener: Listener) -> None:
    alone, together = (_run(tmp_path / str(count), CHAIN, listener, count) for count in (1, 2))
    assert {name: each.result for name, each in alone.items()} == {name: each.result for name, each in together.items()}
    assert {name: each.key for name, each in alone.items()} == {name: each.key for name, each in together.items()}
    assert together["e"].result == {"value": 11111}
    assert {task.name for task in CHAIN} <= set(listener.titles)


def test_tasks_run_at_the_same_time(tmp_path: Path) -> None:
    tasks = [_task(name, seconds=1.0, process=str(tmp_path / name)) for name in "ab"]
    _run(tmp_path / "store", tasks)
    assert (tmp_path / "a").read_text() != (tmp_path / "b").read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_others_go_on_when_a_task_fails(tmp_path: Path, workers: int, listener: Listener) -> None:
    tasks = [_task("a", fails="training"), _task("b", {"model": "a"}), _task("c"), _task("d", {"model": "c"})]
    with pytest.raises(TrainingError, match="this one fails"):
        _run(tmp_path, tasks, listener, workers)
    assert _finished(tmp_path, tasks) == {"c", "d"}
    assert any("a failed" in said for said in listener.said)


@pytest.mark.parametrize(("fails", "error"), [("store", StoreError), ("bug", ZeroDivisionError)])
def test_a_full_disk_and_a_bug_end_the_run(tmp_path: Path, fails: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="this one fails") as caught:
        _run(tmp_path, [_task("a", fails=fails), _task("b", seconds=60)])
    assert any("engine_tasks" in note for note in getattr(caught.value, "__notes__", ()))  # where in the worker


def test_a_worker_that_dies_costs_its_task_only(tmp_path: Path, listener: Listener) -> None:
    tasks = [_task("a", dies=1), _task("b"), _task("c", {"model": "a"})]
    found = _run(tmp_path, tasks, listener)
    assert found["c"].result == {"value": 2}
    assert [said for said in listener.said if "signal 9" in said and " a " in said]


def test_a_task_whose_workers_keep_dying_fails(tmp_path: Path) -> None:
    tasks = [_task("a", dies=9), _task("b"), _task("c", {"model": "b"})]
    with pytest.raises(MachineError, match=r"a failed: 2 worker processes ended .*signal 9.*fewer workers"):
        _run(tmp_path, tasks)
    assert _finished(tmp_path, tasks) == {"b", "c"}


@pytest.mark.parametrize("kills", [2, 3])
def test_a_worker_that_is_killed_while_it_starts_is_started_again(
    tmp_path: Path, kills: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, pids = workers_module._Worker._begin, list[int]()

    def killed(worker: Any) -> None:
        begin(worker)
        pids.append(worker.process.pid)
        if worker._starts <= kills:
            worker.process.kill()  # long before it has imported anything

    monkeypatch.setattr(workers_module._Worker, "_begin", killed)
    if kills == 2:
        assert _run(tmp_path, [_task("a"), _task("b")])["a"].result == {"value": 1}
        assert len(pids) == 2 * 3
    else:
        with pytest.raises(MachineError, match=r"do not start \(exit code -9\)"):
            _run(tmp_path, [_task("a"), _task("b")])
        assert len(pids) > 2  # the other worker may still be starting
    assert not any(map(is_running, pids))


def test_a_worker_that_cannot_load_the_code_ends_the_run(tmp_path: Path) -> None:
    store = Store(tmp_path)
    producers = {"add": Producer("casemate.losses", "engine_tasks:nothing")}
    plan = make_plan([_task("a"), _task("b")], ["a", "b"], producers, store, "cpu")
    with pytest.raises(AttributeError, match="nothing"):
        run_plan(plan, producers, store, Context("cpu", NULL_OBSERVER), engine=Processes(workers=2))


def test_code_that_was_edited_meanwhile_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers read the code again: it must be that of the keys."""
    monkeypatch.setattr("casemate.engine.run.code_version", lambda module: "0123456789abcdef")
    with pytest.raises(StoreError, match="the code was edited while the study ran"):
        _run(tmp_path, [_task("a"), _task("b")])
    assert _finished(tmp_path, [_task("a"), _task("b")]) == set()


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from casemate.cli.shared.observers import watching
from casemate.engine import Context, Processes, Producer, Store, Task, make_plan, run_plan
from casemate.errors import is_interruption

PRODUCERS = {{"add": Producer("casemate.losses", "engine_tasks:produce")}}
if __name__ == "__main__":
    root = Path(sys.argv[1])
    tasks = [
        Task(name=f"t{{n}}", kind="add", config={{"value": n, "seconds": 0.3, "process": str(root / f"p{{n}}")}})
        for n in range(8)
    ]
    store = Store(root / "store")
    plan = make_plan(tasks, [task.name for task in tasks], PRODUCERS, store, "cpu")
    with watching() as observer:
        run_plan(plan, PRODUCERS, store, Context("cpu", observer), engine=Processes(workers=2))
    print("finished")
"""


def _wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.02)


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["worker", "parent", "interrupt"])
def test_kills_leave_nothing_running_and_nothinglocked(tmp_path: Path, kind: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, str(program), str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        _wait_for(lambda: len([file for file in tmp_path.glob("p?") if file.read_text()]) > 1)
        workers = {int(file.read_text()) for file in tmp_path.glob("p?") if file.read_text()}
        if kind == "worker":
            os.kill(workers.copy().pop(), signal.SIGKILL)
        elif kind == "parent":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group gets it
        output = process.communicate(timeout=100)[0]
    workers |= {int(file.read_text()) for file in tmp_path.glob("p?") if file.read_text()}
    _wait_for(lambda: not any(is_running(pid) for pid in workers), 10)
    assert locked(tmp_path / "store") == []
    assert process.returncode == {"worker": 0, "parent": -9, "interrupt": -2}[kind], output
    if kind != "worker":
        again = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
        assert "finished" in again.stdout
    found = {each.facts["name"]: each.result["value"] for each in Store(tmp_path / "store").artifacts()}
    assert found == {f"t{n}": n for n in range(8)}
    assert not [file for file in (tmp_path / "store" / "artifacts").iterdir() if file.name.startswith(".")]


@pytest.mark.integration
def test_a_ctrl_c_while_a_worker_is_started_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[SpawnProcess] = []
    start = SpawnProcess.start

    def interrupted(process: SpawnProcess) -> None:
        signal.raise_signal(signal.SIGINT)
        start(process)
        started.append(process)

    monkeypatch.setattr(SpawnProcess, "start", interrupted)
    setup = _setup(DefaultType(), torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background programs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            Processes(workers=2).open(setup, NULL_OBSERVER)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    finally:
        signal.signal(signal.SIGINT, before)
    assert [process.is_alive() for process in started] == [False, False]


NETWORK = """
import torch
from torch import nn

class Network(nn.Module):
    def forward(self, images):
        return SIGN * torch.stack([images.flatten(1).sum(1) - 32, 32 - images.flatten(1).sum(1)], dim=1)
"""


@pytest.fixture
def namesakes(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Two files of one name, in different folders, with networks that contradict each other."""
    before, paths = set(sys.modules), list(sys.path)
    for folder, sign in (("old", "1"), ("new", "-1")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "network.py").write_text(NETWORK.replace("SIGN", sign))
    yield f"{tmp_path}/old/network.py:Network", f"{tmp_path}/new/network.py:Network"
    sys.path[:] = paths
    for name in set(sys.modules) - before:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("images", "workers", "factor"), [(500, 2, 1.0), (600, 2, 1.2), (1000, 2, 2.0), (2000, 8, 2.0), (50_000, 8, 8.0)]
)
def test_few_images_keep_few_workers_busy(images: int, workers: int, factor: float) -> None:
    assert speedup_at_most(shard_bounds(images, (1, 28, 28)), workers) == pytest.approx(factor)


@pytest.mark.integration
def test_workers_that_wait_are_said_to(listener: Listener) -> None:
    model = as_model(DefaultType())
    for count, said in ((600, ["600 images are 2 parts, of which the largest has 500"]), (1000, [])):
        given = LabelledImages(pixels=torch.rand(count, 1, 2, 2), labels=torch.zeros(count, dtype=torch.int64))
        run_cascade(model, {"fgsm": FGSM(eps=0.001)}, given, [0.001], engine=Processes(workers=2), observer=listener)
        assert [each[:50] for each in listener.said if "parts" in each] == [each[:50] for each in said]
        listener.said.clear()


@pytest.mark.integration
def test_workers_have_the_code_of_the_model_and_not_that_of_a_namesake(namesakes: tuple[str, str]) -> None:
    models = [open_model(each).model for each in namesakes]
    images = torch.rand(1100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for model in models:
        labels = model(images).argmax(1)
        alone, together = (
            run_cascade(model, {"pgd": PGD(eps=0.001, steps=2)}, given, [0.001], engine=engine)
            for given in [LabelledImages(pixels=images, labels=labels)]
            for engine in (None, Processes(workers=2))
        )
        assert alone.robust.mean() > 0.5
        assert (alone.robust == together.robust).all()


class DefaultType(nn.Module):
    """A network that computes in PyTorch's default type."""

    def forward(self, images: Tensor) -> Tensor:
        scores = images.flatten(1).to(torch.get_default_dtype()).sum(1) / 3
        return torch.stack([scores, -scores], 1)


def _setup(model: nn.Module, few: Tensor) -> StepSetup:
    with prepare_for_attack(as_model(model), few) as prepared:
        return step_setup(prepared, {("fgsm", 0.1): FGSM(eps=0.1)}, few, norm="linf", seed=0)


def test_workers_compute_under_the_caller_s_settings_of_pytorch() -> None:
    few = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with numeric_settings_as((torch.float64, *numeric_settings()[1:])):
        setup = unpacked(packed(_setup(DefaultType(), few)))
    assert torch.get_default_dtype() == torch.float32
    with setup.open():
        assert torch.get_default_dtype() == torch.float64
        with numeric_settings_as((*numeric_settings()[:2], 1, *numeric_settings()[3:])):
            assert torch.get_deterministic_debug_mode() == 1
    assert (torch.get_default_dtype(), torch.get_deterministic_debug_mode()) == (torch.float32, 0)


def test_pieces_say_on_what_processor_they_were_computed_if_it_rounds_differently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = LabelledImages(pixels=images, labels=torch.zeros(6, dtype=torch.int64))
    setup = _setup(DefaultType(), images)
    step = Step(column=0, eps=0.1, place=0, name="fgsm", cost=3)
    job = StepJob(
        step=step, start=0, places=torch.arange(6), images=data, pilot=False, keeps_nearest=False, pass_size=None
    )
    with setup.open() as compute:
        assert compute(job, NULL_OBSERVER).processor is None
    rounded = dataclasses.replace(setup, logits=setup.logits * (1 + 1e-6))
    monkeypatch.setattr(steps_module, "processor", lambda: "Another 1000")
    monkeypatch.setattr(steps_module, "instruction_set", lambda: "AVX512")
    with rounded.open() as compute:
        piece = compute(job, NULL_OBSERVER)
    piece.write(tmp_path / "piece.safetensors")
    found = Piece.read(tmp_path / "piece.safetensors")
    assert found is not None
    assert found.processor == piece.processor == "Another 1000, AVX512"
    monkeypatch.setattr(cascade_module, "compute_step", lambda *given, **options: piece)
    run_cascade(DefaultType(), {"fgsm": FGSM(eps=0.1), "again": FGSM(eps=0.1)}, data, [0.1], observer=listener)
    assert sum("another kind of processor (Another 1000, AVX512)" in words for words in listener.said) == 1


def test_a_worker_whose_network_computes_something_else_ends_the_run() -> None:
    few = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    setup = _setup(DefaultType(), few)
    with (
        pytest.raises(MachineError, match="a worker computes other logits"),
        dataclasses.replace(setup, logits=setup.logits * 1.1).open(),
    ):
        pass


def test_a_folder_s_module_is_not_taken_for_another_folder_s(namesakes: tuple[str, str]) -> None:
    old, new = (Path(each.partition(":")[0]).parent for each in namesakes)
    for folder in (old, new):
        (folder / "casemate_namesake_layers.py").write_text(f"SIGN = {1 if folder == old else -1}\n")
        (folder / "network.py").write_text("from casemate_namesake_layers import SIGN\n" + NETWORK)
    assert open_model(namesakes[0]).model(torch.ones(2, 1, 8, 8)).argmax(1).tolist() == [0, 0]
    with pytest.raises(ModelError, match=r"casemate_namesake_layers.py has the same name.*one at a time"):
        open_model(namesakes[1])


def test_a_black_box_is_not_sent_to_workers() -> None:
    with pytest.raises(ModelError, match="counts its calls in one process"):
        packed(QueryCount(100))
