"""The engine of a Ray cluster: the same results, whatever happens to workers and nodes, and nothing is left behind."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from casemate.attacks import PGD, Square
from casemate.engine import Artifact, Context, Processes, Producer, Ray, Store, Task, make_plan, run_plan
from casemate.errors import MachineError, MissingExtraError, SettingError, StoreError, TrainingError
from casemate.evaluation import evaluate
from casemate.progress import NULL_OBSERVER
from conftest import Listener
from engine_tasks import is_running, locked

PRODUCERS = {"add": Producer("casemate.losses", "engine_tasks:produce")}
TESTS = str(Path(__file__).parent)


def _task(name: str, needs: dict[str, str] | None = None, **config: Any) -> Task:
    return Task(name=name, kind="add", config={"value": 1, **config}, needs=needs or {})


def _run(folder: Path, tasks: list[Task], observer: Any = NULL_OBSERVER, engine: Any = None) -> dict[str, Artifact]:
    store = Store(folder)
    plan = make_plan(tasks, [task.name for task in tasks], PRODUCERS, store, "cpu")
    return run_plan(plan, PRODUCERS, store, Context("cpu", observer), engine=engine or Ray(workers=2))


def _wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "workers = 0"),
        ({"cpus": 0.0}, "cpus = 0"),
        ({"gpus": -1.0}, "gpus = -1"),
        ({"gpus": 1.5}, "a fraction of one GPU, or a whole number"),
        ({"address": "ray://10.0.0.1:10001"}, "ray job submit"),
    ],
)
def test_settings_that_no_cluster_could_follow_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Ray(**options)


@pytest.mark.parametrize(("address", "error"), [("127.0.0.1:1", MachineError), ("nowhere", SettingError)])
def test_an_address_without_a_cluster_is_an_error_at_once(tmp_path: Path, address: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=address):
        _run(tmp_path, [_task("a")], engine=Ray(address=address))


def test_without_ray_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casemate.engine.ray_cluster.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"casemate\[ray\]"):
        _run(tmp_path, [_task("a")])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without processors for tasks, to which nodes are added; this process is connected to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        from ray.cluster_utils import Cluster

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        made.add_node(num_cpus=2)
        ray.init(address=made.address, log_to_driver=False)
    yield made
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.shutdown()
        made.shutdown()
        del made
        gc.collect()  # Ray leaves objects of processes that it has not waited for, which would warn later


CHAIN = [
    _task("a"),
    _task("b", {"model": "a"}, value=10),
    _task("c", {"model": "b"}, value=100),
    _task("d", value=1000),
    _task("e", {"x": "d", "y": "c"}, value=10000),
]
FAILURES = [("store", StoreError), ("training", TrainingError), ("bug", ZeroDivisionError)]


@pytest.mark.integration
def test_a_cluster_computes_what_one_process_computes(tmp_path: Path, cluster: Any, listener: Listener) -> None:
    alone = _run(tmp_path / "alone", CHAIN, engine=Processes(workers=1))
    found = _run(tmp_path / "ray", CHAIN, listener)
    assert {name: each.result for name, each in alone.items()} == {name: each.result for name, each in found.items()}
    assert {name: each.key for name, each in alone.items()} == {name: each.key for name, each in found.items()}
    assert {task.name for task in CHAIN} <= set(listener.titles)  # progress crosses the cluster


@pytest.mark.integration
def test_a_worker_that_dies_costs_its_task_only(tmp_path: Path, cluster: Any, listener: Listener) -> None:
    found = _run(tmp_path, [_task("a", dies=1), _task("b"), _task("c", {"model": "a"})], listener)
    assert found["c"].result == {"value": 2}
    assert [said for said in listener.said if " a ended" in said and "again" in said]


@pytest.mark.integration
def test_a_task_whose_workers_keep_dying_fails_and_the_others_go_on(tmp_path: Path, cluster: Any) -> None:
    with pytest.raises(MachineError, match="a failed: 2 worker processes ended"):
        _run(tmp_path, [_task("a", dies=9), _task("b")])
    plan = make_plan([_task("b")], ["b"], PRODUCERS, Store(tmp_path), "cpu")
    assert "b" in plan.artifacts


@pytest.mark.integration
@pytest.mark.parametrize(("fails", "error"), FAILURES)
def test_errors_of_tasks_arrive_as_they_are(tmp_path: Path, cluster: Any, fails: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="this one fails"):
        _run(tmp_path, [_task("a", fails=fails)])


@pytest.mark.integration
def test_a_job_that_fits_no_node_is_an_error_at_once(tmp_path: Path, cluster: Any) -> None:
    with pytest.raises(MachineError, match=r"needs 64 CPU and 0 GPU on one node.*2 CPU"):
        _run(tmp_path, [_task("a")], engine=Ray(cpus=64))
    with pytest.raises(MachineError, match="1 GPU"):
        _run(tmp_path, [_task("a")], engine=Ray(gpus=1))


@contextmanager
def _removed_when(condition: Callable[[], Any], cluster: Any) -> Iterator[None]:
    """Context with one more node in the cluster, which is killed as soon as the condition is met."""
    node = cluster.add_node(num_cpus=2)

    def remove() -> None:
        _wait_for(condition)
        cluster.remove_node(node, allow_graceful=False)
        for each in (each for some in node.all_processes.values() for each in some):
            each.process.wait()  # or it warns when it is collected

    thread = threading.Thread(target=remove)
    thread.start()
    yield
    thread.join()


@pytest.mark.integration
def test_a_node_that_is_removed_costs_the_pieces_that_it_computed(
    tmp_path: Path, cluster: Any, listener: Listener
) -> None:
    tasks = [_task(f"t{n}", value=n, seconds=1.0, process=str(tmp_path / f"p{n}")) for n in range(8)]
    with _removed_when(lambda: len(list(tmp_path.glob("p?"))) >= 4, cluster):
        found = _run(tmp_path / "store", tasks, listener, Ray(workers=4))
    assert {name: each.result["value"] for name, each in found.items()} == {f"t{n}": n for n in range(8)}
    assert [said for said in listener.said if "computing it again" in said]
    assert locked(tmp_path / "store") == []


@pytest.mark.integration
@pytest.mark.slow
def test_an_evaluation_survives_the_removal_of_a_node(tmp_path: Path, cluster: Any, listener: Listener) -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(3000, 1, 8, 8, generator=draw)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():
        for each in network.parameters():
            each.copy_(torch.randn(each.shape, generator=draw) / 4)
        labels = network(images).argmax(1)
    attacks = [PGD(eps=0.01, steps=200), Square(eps=0.01, n_queries=500)]

    def evaluated(engine: Any) -> Any:
        given = {"eps": [0.01, 0.02], "attacks": attacks, "store": tmp_path / str(engine is None), "engine": engine}
        return evaluate(network, images, labels, observer=listener, **given).cascade

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = evaluated(None)
        with _removed_when(lambda: list((tmp_path / "False").glob("evaluations/*/*/*.safetensors")), cluster):
            together = evaluated(Ray(workers=4))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone.adversarial, together.adversarial)
    assert (alone.first_success == together.first_success).all()
    assert (alone.distance == together.distance).all()
    assert alone.passes == together.passes


EVALUATION = """
import json, sys
import torch
import casemate
from casemate.attacks import PGD, Square
from casemate.engine import Processes, Ray

if __name__ == "__main__":
    torch.set_num_threads(1)
    engine = {"here": None, "processes": Processes(workers=2), "ray": Ray(workers=2, address=ADDRESS)}[sys.argv[1]]
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(1200, 1, 8, 8, generator=draw)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    with torch.no_grad():
        for each in network.parameters():
            each.copy_(torch.randn(each.shape, generator=draw) / 4)
        labels = network(images).argmax(1)
    found = casemate.evaluate(network, images, labels, eps=[0.01, 0.05], engine=engine, ATTACKS,
                              store=sys.argv[2], observer=casemate.progress_bars())
    torch.save(
        {"adversarial": found.cascade.adversarial, "first": torch.from_numpy(found.cascade.first_success),
         "distance": torch.from_numpy(found.cascade.distance), "robust": torch.from_numpy(found.cascade.robust)},
        sys.argv[3],
    )
    kept = found.as_json()
    for each in kept["attempts"]:
        del each["seconds"]
    print(json.dumps({name: kept[name] for name in ("attempts", "passes", "verdicts", "robust_accuracy", "checks")}))
"""


SHORT = "attacks=[PGD(eps=0.05, steps=10), Square(eps=0.05, n_queries=50)]"
"""Attacks that take a second in place of those of a budget, for a test that kills nothing meanwhile."""


def _evaluation(
    tmp_path: Path, engine: str, store: str, address: str | None = None, attacks: str = 'budget="quick"'
) -> "subprocess.Popen[str]":
    program = tmp_path / "program.py"
    program.write_text(EVALUATION.replace("ADDRESS", repr(address)).replace("ATTACKS", attacks))
    command = [sys.executable, str(program), engine, str(tmp_path / store), str(tmp_path / f"{store}.pt")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def _same_bits(tmp_path: Path, one: str, other: str) -> bool:
    first, second = (torch.load(tmp_path / f"{name}.pt") for name in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.integration
@pytest.mark.slow
def test_an_evaluation_is_the_same_to_the_bit_wherever_it_runs(tmp_path: Path) -> None:
    printed = {}
    for engine in ("here", "processes", "ray"):
        with _evaluation(tmp_path, engine, engine, attacks=SHORT) as process:
            printed[engine], err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert printed["here"] == printed["processes"] == printed["ray"]  # stdout has nothing of Ray's either
    assert _same_bits(tmp_path, "here", "processes")
    assert _same_bits(tmp_path, "here", "ray")


def _workers_of(process: "subprocess.Popen[str]") -> list[int]:
    """The processes that a program started, directly or not."""
    found, waiting = [], [process.pid]
    while waiting:
        pid = waiting.pop()
        try:
            children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            continue
        waiting += children
        found += children
    return found


def _computing(process: "subprocess.Popen[str]") -> list[int]:
    """Those that compute a piece: Ray names a process after its task."""
    found = []
    for pid in _workers_of(process):
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_text().startswith(("ray::pgd", "ray::apgd", "ray::square")):
                found.append(pid)
    return found


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["worker", "driver", "interrupt"])
def test_a_kill_in_the_middle_changes_nothing_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    with _evaluation(tmp_path, "here", "whole") as process:
        whole, _ = process.communicate(timeout=300)
    with _evaluation(tmp_path, "ray", "killed") as process:
        pieces = tmp_path / "killed" / "evaluations"
        _wait_for(lambda: len(list(pieces.glob("*/*/*.safetensors"))) >= 2 and _computing(process))
        started = _workers_of(process)
        if kind == "worker":
            os.kill(_computing(process)[0], signal.SIGKILL)
        elif kind == "driver":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGINT)
        printed, err = process.communicate(timeout=300)
    if kind == "worker":
        assert process.returncode == 0, err
        assert "computing it again" in err
    else:
        assert process.returncode != 0
        _wait_for(lambda: not any(map(is_running, started)), 150)  # helpers of Ray's look for a minute
        with _evaluation(tmp_path, "ray", "killed") as process:
            printed, err = process.communicate(timeout=300)
        assert "Resumed" in err
    assert printed == whole
    assert _same_bits(tmp_path, "whole", "killed")


def _namespaces_can_be_made() -> bool:
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    made = subprocess.run(["ip", "netns", "add", "casemate-probe"], capture_output=True, check=False).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "del", "casemate-probe"], check=True)
    return made


@pytest.fixture
def second_machine() -> Iterator[tuple[str, Sequence[str]]]:
    """A network namespace with its own address, joined to this one by a cable: the address here, the way in."""
    if not _namespaces_can_be_made():
        pytest.skip("network namespaces need root and the program ip")
    name, here, there = f"casemate{os.getpid()}", "10.203.7.1", "10.203.7.2"
    commands = f"""
        ip netns add {name}
        ip link add cm-here type veth peer name cm-there
        ip link set cm-there netns {name}
        ip addr add {here}/24 dev cm-here
        ip link set cm-here up
        ip netns exec {name} ip addr add {there}/24 dev cm-there
        ip netns exec {name} ip link set cm-there up
        ip netns exec {name} ip link set lo up
    """
    for line in textwrap.dedent(commands).strip().splitlines():
        subprocess.run(line.split(), check=True)
    yield here, ["ip", "netns", "exec", name]
    subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True)
    subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.integration
@pytest.mark.slow
def test_a_second_machine_joins_and_works(tmp_path: Path, second_machine: tuple[str, Sequence[str]]) -> None:
    here, inside = second_machine
    ray = str(Path(sys.executable).parent / "ray")
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
    common = ["--disable-usage-stats", "--object-store-memory", "100000000"]
    head = [ray, "start", "--head", "--node-ip-address", here, "--port", "6399", "--num-cpus", "0", "--block"]
    node = [*inside, ray, "start", "--address", f"{here}:6399", "--node-ip-address", "10.203.7.2", "--num-cpus", "2"]
    started = []
    try:
        for command in ([*head, "--include-dashboard", "false", *common], [*node, "--block", *common[1:]]):
            log = tmp_path / f"ray{len(started)}.log"
            with log.open("w") as file:
                made = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
            started.append(made)
            _wait_for(lambda log=log, made=made: "Ray runtime started" in log.read_text() or made.poll() is not None)
            assert made.poll() is None, log.read_text()
        with _evaluation(tmp_path, "here", "here") as process:
            whole, _ = process.communicate(timeout=300)
        with _evaluation(tmp_path, "ray", "far", f"{here}:6399") as process:
            printed, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert printed == whole
        assert _same_bits(tmp_path, "here", "far")
    finally:
        for each in started:
            os.killpg(each.pid, signal.SIGTERM)
        for each in started:
            each.wait(timeout=60)
