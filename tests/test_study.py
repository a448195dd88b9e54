"""The study: its experiments as data, and what a run of it leaves behind after kills, faults and second runs."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import pytest

from casemate.cli.main import main
from casemate.defenses import AdversarialRegularization
from casemate.engine import Producer, Store
from casemate.engine.code_version import SourceTree
from casemate.engine.task import Task, keys, ordered
from casemate.errors import SettingError
from casemate_study.experiments import paper
from casemate_study.experiments.catalogue import EXPERIMENTS, choose_experiments, models_of, tasks_of
from casemate_study.experiments.scales import SCALES, Scale, scale_by_name, scale_table
from casemate_study.experiments.specs import LOSSES, Setup
from casemate_study.tasks.registry import PRODUCERS
from engine_tasks import is_running, locked

SOURCE = Path(__file__).parent.parent / "src"

TINY: dict[str, Any] = {
    "train_images": 96,
    "validation_images": 32,
    "epochs": 3,
    "kept_epochs": (1, 3),
    "tuned_epochs": 1,
    "test_images": 20,
    "fgsm_images": 8,
    "bim_images": 4,
    "steps_images": 4,
    "checkpoint_images": 4,
    "attacked_images": 4,
    "targeted_images": 4,
    "step_counts": (0, 1, 2),
}
"""The smoke scale, smaller still."""


def driver_for(scale: dict[str, Any]) -> str:
    """`casemate` with another smoke scale, as a program for a process of its own."""
    return f"""
        import sys
        from dataclasses import replace
        from casemate_study.experiments.scales import SCALES
        from casemate.cli.main import main
        SCALES["smoke"] = replace(SCALES["smoke"], **{scale!r})
        sys.exit(main())
    """


DRIVER = driver_for(TINY)
SMOKE = ["study", "--scale", "smoke", "--device", "cpu", "--no-report", "--workers", "1", "--precision", "float32"]
PART = (*SMOKE, "--only", "E1", "E2", "E3", "E4", "E6")
"""Some experiments, one of them with a defence. The tests of the report run all of them."""
WHOLE = "import sys\nfrom casemate.cli.main import main\nsys.exit(main())"
"""`casemate` as it is, as a program for a process of its own."""
START = "artifacts to compute"


def casemate(*arguments: object, driver: str = DRIVER, **options: Any) -> subprocess.Popen[str]:
    """Start the driver with `arguments`, one thread, stdout and stderr as pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(driver), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def finished(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """What a process printed, once it has ended with `code`."""
    out, err = process.communicate(timeout=900)
    assert process.returncode == code, f"ended with {process.returncode}: {err}"
    return out, err


def await_start(process: subprocess.Popen[str]) -> None:
    """Wait until a study begins to compute."""
    assert process.stderr is not None
    for line in process.stderr:
        if START in line:
            return
    raise AssertionError("ended before it began")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smoke scale in this process is the driver's."""
    monkeypatch.setitem(SCALES, "smoke", replace(SCALES["smoke"], **TINY))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a part of the study that nothing disturbed."""
    store = tmp_path_factory.mktemp("undisturbed")
    finished(casemate(*PART, "--store", store))
    return store


def _timeless(content: Any) -> Any:
    """The same without the seconds."""
    if isinstance(content, dict):
        return {k: _timeless(value) for k, value in cast(dict[str, Any], content).items() if not k.endswith("seconds")}
    return [_timeless(value) for value in cast(list[Any], content)] if isinstance(content, list) else content


def _contents(store: Path) -> dict[str, Any]:
    """Everything that finished artifacts hold, but for times."""
    found: dict[str, Any] = {}
    for artifact in Store(store).artifacts():
        facts = {name: _timeless(artifact.facts[name]) for name in ("key", "kind", "config", "needs", "code", "result")}
        files = {path.name: path.read_bytes() for path in artifact.folder.iterdir() if path.name != "artifact.json"}
        found[artifact.facts["name"]] = (facts, files)
    return found


def _assert_same(store: Path, other: Path) -> None:
    """What one store holds is the same in the other, which may hold more."""
    ours, theirs = _contents(store), _contents(other)
    assert ours
    assert ours.keys() <= theirs.keys()
    for name, (facts, files) in ours.items():
        assert facts == theirs[name][0], name
        assert files.keys() == theirs[name][1].keys(), name
        differ = [file for file, content in files.items() if content != theirs[name][1][file]]
        assert differ == [], name


def _killed_study(store: Path, moments: list[float], driver: str, *only: str) -> int:
    """Run a study, killed after each of `moments` (seconds of computing), then to its end; return the kills."""
    command = [*SMOKE, *(("--only", *only) if only else ()), "--store", store]
    kills = 0
    for moment in moments:
        with casemate(*command, driver=driver) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if START in line:
                    time.sleep(moment)
                    break
            process.send_signal(signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
    finished(casemate(*command, driver=driver))
    plan = json.loads(finished(casemate(*command, "--dry-run", "--json", driver=driver))[0])
    assert {artifact["name"] for artifact in plan["artifacts"]} == _contents(store).keys()
    return kills


@pytest.mark.integration
@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_in_the_same_results(undisturbed: Path, tmp_path: Path) -> None:
    draw = random.Random(5)
    kills = _killed_study(tmp_path, [draw.uniform(0.5, 1.5), draw.uniform(0.0, 2.0)], DRIVER, "E1", "E4")
    assert kills >= 1
    _assert_same(tmp_path, undisturbed)


@pytest.mark.integration
def test_two_workers_compute_what_one_process_computes(undisturbed: Path, tmp_path: Path) -> None:
    finished(casemate(*SMOKE, "--workers", 2, "--only", "E1", "E6", "--store", tmp_path))
    _assert_same(tmp_path, undisturbed)


@pytest.mark.integration
@pytest.mark.slow
def test_a_ray_cluster_computes_what_one_process_computes(undisturbed: Path, tmp_path: Path) -> None:
    out, _ = finished(
        casemate(*SMOKE, "--engine", "ray", "--workers", 2, "--only", "E1", "E6", "--store", tmp_path, "--json")
    )
    json.loads(out)  # Ray prints nothing there
    _assert_same(tmp_path, undisturbed)


def _descendants(pid: int) -> list[int]:
    """The processes that a process started, directly or not."""
    children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [each for child in children for each in _descendants(child)]


def _disturb(process: subprocess.Popen[str], kind: str, draw: random.Random) -> int:
    """Kill a worker or the whole study, or press Ctrl-C; return the exit code that is expected of the study."""
    workers = [pid for pid in _descendants(process.pid) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    if kind == "worker":
        if workers:
            os.kill(draw.choice(workers), signal.SIGKILL)
        return 0
    if kind == "parent":
        process.kill()
        return -signal.SIGKILL
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group gets it
    return 130


@pytest.mark.integration
@pytest.mark.slow
def test_twenty_kills_and_interrupts_of_a_study_with_two_workers(tmp_path: Path) -> None:
    """At random moments, at the scale that users run: nothing stays running or locked, and nothing differs in the end
    from a study that one process computed undisturbed.
    """
    start = time.monotonic()
    finished(casemate(*SMOKE, "--store", tmp_path / "whole", driver=WHOLE))
    whole = time.monotonic() - start
    draw = random.Random(20)
    command = [*SMOKE, "--workers", "2", "--store", tmp_path / "disturbed"]
    disturbed = 0
    for number in range(20):
        kind = ("worker", "parent", "interrupt")[number % 3]
        process = casemate(*command, driver=WHOLE, start_new_session=True)
        await_start(process)
        time.sleep(draw.uniform(0, whole / 20))
        ended = process.poll() is not None
        before = _descendants(process.pid) if not ended else []
        expected = 0 if ended else _disturb(process, kind, draw)
        if kind == "worker" and not ended:  # it goes on, and is interrupted later
            time.sleep(draw.uniform(0, whole / 40))
            ended = process.poll() is not None
            before += _descendants(process.pid) if not ended else []
            expected = 0 if ended else _disturb(process, "interrupt", draw)
        _, err = process.communicate(timeout=100)
        # -2, which a shell shows as 130: while Python starts or ends, a signal has no handler yet, or no longer
        allowed = (expected, 0, *((-signal.SIGINT,) if expected == 130 else ()))
        assert process.returncode in allowed, err
        assert "Traceback" not in err
        disturbed += process.returncode != 0
        limit = time.monotonic() + 10
        while any(map(is_running, before)):
            assert time.monotonic() < limit, "processes are left running"
            time.sleep(0.05)
        assert locked(tmp_path / "disturbed") == []
    assert disturbed >= 10
    finished(casemate(*command, driver=WHOLE))
    _assert_same(tmp_path / "disturbed", tmp_path / "whole")
    _assert_same(tmp_path / "whole", tmp_path / "disturbed")


@pytest.mark.integration
def test_a_stopped_study_says_that_it_goes_on(tmp_path: Path) -> None:
    process = casemate(*SMOKE, "--store", tmp_path)
    await_start(process)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = finished(process, code=130)
    lines = err.splitlines()
    assert lines[-1] == "stopped: finished work is kept; run the same command again to continue."
    assert "Traceback" not in err
    with Store(tmp_path).lock_for("free"):  # and every lock is free
        assert all(path.parent.name == "working" for path in Store(tmp_path).unfinished())


Run = Callable[..., tuple[int, str, str]]


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """What runs a command in this process and returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([*map(str, arguments)])
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(capsys)


@pytest.mark.integration
@pytest.mark.usefixtures("tiny")
def test_a_finished_study_computes_nothing(undisturbed: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.parent.name != "locks"}

    def refuse(*args: object, **kwargs: object) -> dict[str, Any]:
        raise AssertionError("computed again")

    monkeypatch.setattr(Producer, "load", lambda producer: refuse)
    code, out, err = run(*PART, "--store", undisturbed, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["computed"] == 0
    assert len(found["artifacts"]) > 20
    assert "nothing is computed" in err
    assert {row["what"] for row in found["results"]} >= {"test accuracy", "FGSM, eps 0.1, ce", "BIM ball, eps 0.05, ce"}
    assert all({"value", "low", "high", "n"} <= row["accuracy"].keys() for row in found["results"])
    after = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.parent.name != "locks"}
    assert after == before


@pytest.mark.integration
@pytest.mark.usefixtures("tiny")
def test_a_plan_computes_nothing(undisturbed: Path, tmp_path: Path, run: Run) -> None:
    code, out, _ = run(*SMOKE, "--store", tmp_path / "store", "--out", tmp_path / "out", "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0
    assert not any(artifact["finished"] for artifact in plan["artifacts"])
    assert plan["seconds_left"] == pytest.approx(sum(artifact["seconds_left"] for artifact in plan["artifacts"]))
    assert plan["seconds_left"] > 0
    assert Store(tmp_path / "store").artifacts() == []
    assert Store(tmp_path / "store").unfinished() == []
    assert not (tmp_path / "out").exists()

    code, out, _ = run(*PART, "--store", undisturbed, "--dry-run")
    assert code == 0
    assert "nothing left to compute" in out
    assert "E3/range/prob-ce" in out
    assert "to do" not in out


def copied(folder: Path) -> list[Path]:
    """Copies of the packages whose code makes the results, for editing."""
    copies = []
    for root in (SOURCE / "casemate", SOURCE / "casemate_study"):
        if root.is_dir():
            copies.append(shutil.copytree(root, folder / root.name, ignore=shutil.ignore_patterns("__pycache__")))
    return copies


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the packages that are taken for the code which makes the results."""
    copies = copied(tmp_path)
    monkeypatch.setattr(sys.modules["casemate.engine.code_version"], "INSTALLED", SourceTree(*copies))
    return copies[0]


def versions(copies: Sequence[Path]) -> dict[str, str]:
    """The version of the code of every kind of artifact."""
    tree = SourceTree(*copies)
    return {kind: tree.version(producer.module) for kind, producer in PRODUCERS.items()}


TRAINED = {"train", "defend"}
MEASURED = {"clean", "curve", "masking", "worst", "targeted"}
SHOWN = {"pictures", "neighbours", "augmented", "samples"}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("module", "stale"),
    [
        ("casemate.attacks.gradient", {"defend", "evaluation", "hypotheses"} | MEASURED | SHOWN),
        pytest.param("casemate.attacks.square", {"evaluation"} | MEASURED, marks=pytest.mark.slow),
        ("casemate.attacks.lbfgs", set()),
        pytest.param("casemate.training.loop", {"hypotheses"} | TRAINED, marks=pytest.mark.slow),
        pytest.param("casemate.defenses.adversarial_training", {"defend"}, marks=pytest.mark.slow),
        pytest.param(
            "casemate.models.paper", {"evaluation", "hypotheses"} | TRAINED | MEASURED | SHOWN, marks=pytest.mark.slow
        ),
        pytest.param("casemate_study.report.build", set(), marks=pytest.mark.slow),
        pytest.param("casemate_study.tasks.training", {"hypotheses"} | TRAINED, marks=pytest.mark.slow),
        ("casemate_study.tasks.measurements", MEASURED),
        pytest.param("casemate_study.tasks.hypotheses", {"hypotheses"}, marks=pytest.mark.slow),
        pytest.param("casemate_study.tasks.evaluations", {"evaluation"}, marks=pytest.mark.slow),
        pytest.param("casemate_study.tasks.pictures", SHOWN, marks=pytest.mark.slow),
        pytest.param("casemate_study.claims", set(), marks=pytest.mark.slow),
    ],
)
def test_one_line_makes_what_rests_on_it_stale(tmp_path: Path, module: str, stale: set[str]) -> None:
    copies = copied(tmp_path)
    before = versions(copies)
    base = tmp_path.joinpath(*module.split("."))
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    text = path.read_text()
    path.write_text(text + "\n\nADDED = 1\n")
    after = versions(copies)
    assert {kind for kind in before if after[kind] != before[kind]} == stale

    path.write_text(text.replace('"""', '"""Now said better: ', 1) + "\n# a comment at the end\n")
    assert versions(copies) == before


@pytest.mark.integration
def test_the_wording_of_errors_makes_nothing_stale(tmp_path: Path) -> None:
    copies = copied(tmp_path)
    before = versions(copies)
    errors = 0
    for path in (each for copy in copies for each in copy.rglob("*.py")):
        text, count = re.subn(r'raise (\w+)\(\n? *f?"', r"\g<0>now said better: ", path.read_text())
        path.write_text(text)
        errors += count
    assert errors > 100
    assert versions(copies) == before


@pytest.mark.integration
@pytest.mark.usefixtures("tiny")
def test_comments_in_the_code_make_nothing_stale(undisturbed: Path, edited: Path, run: Run) -> None:
    for path in (
        each for root in edited.parent.iterdir() if root.name.startswith("casemate") for each in root.rglob("*.py")
    ):
        text = path.read_text()
        assert text == "" or text.startswith(('"""', 'r"""')), path
        path.write_text(text.replace('"""', '"""Now said better: ', 1) + "\n# a thought at the end\n")
    code, out, _ = run(*PART, "--store", undisturbed, "--dry-run", "--json")
    assert code == 0
    assert [artifact["name"] for artifact in json.loads(out)["artifacts"] if not artifact["finished"]] == []
    _, out, _ = run("store", "list", "--store", undisturbed, "--json")
    assert all(artifact["current"] for artifact in json.loads(out)["artifacts"])


@pytest.mark.integration
@pytest.mark.usefixtures("tiny")
def test_another_attack_loss_leaves_the_trained_models(undisturbed: Path, edited: Path, run: Run) -> None:
    losses = edited / "losses.py"
    assert "_CLIP = 1e-7" in losses.read_text()
    losses.write_text(losses.read_text().replace("_CLIP = 1e-7", "_CLIP = 1e-6"))
    _, out, _ = run(*PART, "--store", undisturbed, "--dry-run", "--json")
    planned = json.loads(out)["artifacts"]
    trained = {artifact["name"] for artifact in planned if _tasks(SETUPS[0])[artifact["name"]].kind == "train"}
    assert {"E1/train", "seed-1/E1/train"} <= trained
    assert "E6/train" not in trained  # its adversarial images come from an attack
    assert {artifact["name"] for artifact in planned if artifact["finished"]} == trained
    _, out, _ = run("store", "list", "--store", undisturbed, "--json")
    assert {artifact["kind"] for artifact in json.loads(out)["artifacts"] if artifact["current"]} == {"train"}
    store = edited.parent / "store"
    shutil.copytree(undisturbed, store)
    code, out, _ = run("store", "clean", "--store", store)
    assert code == 0
    assert [artifact.facts["kind"] for artifact in Store(store).artifacts()] == ["train"] * len(trained)


@pytest.mark.usefixtures("tiny", "unchecked")
def test_a_report_of_what_is_finished_so_far(tmp_path: Path, run: Run) -> None:
    store, out = tmp_path / "store", tmp_path / "report"
    report = ("report", "--scale", "smoke", "--precision", "float32", "--store", store, "--out", out)
    code, _, err = run(*report)
    assert code == 2
    assert "none of the" in err
    assert "run `casemate study` with the same options first" in err
    assert not out.exists()

    code, shown, err = run(*SMOKE, "--only", "E2", "--store", store)
    assert code == 0, err
    assert "FGSM, eps 0.1, torch-ce" in shown
    code, shown, err = run(*report)
    assert code == 0, err
    done = len(Store(store).artifacts())
    assert f"Report of {done} of " in shown
    page = (out / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert not any(line.startswith("Study") for line in err.splitlines())

    code, shown, _ = run(*report, "--only", "E2", "--json")
    assert code == 0
    assert json.loads(shown) == {
        "schema": "casemate-study/report/1",
        "report": str(out / "report.html"),
        "finished": done,
        "artifacts": done,
    }


@pytest.mark.integration
@pytest.mark.usefixtures("tiny")
def test_pieces_are_of_one_training_and_one_precision(tmp_path: Path, run: Run) -> None:
    """A model is trained again where its weights are needed; if it is another one, nothing is measured of it."""
    pieces, measured = tmp_path / "pieces", "E2_fgsm_ce"
    of = ("--scale", "smoke", "--only", "E2", "--pieces", pieces)
    study = ("study", *of, "--no-report", "--workers", "1", "--device", "cpu")
    code, _, err = run(*study, "--precision", "float32", "--store", tmp_path / "first")
    assert code == 0, err
    trained = pieces / "E1_train" / "artifact.json"
    before, facts = trained.read_bytes(), json.loads(trained.read_text())
    assert facts["result"]["fingerprints"].keys() == facts["result"]["versions"].keys()

    shutil.rmtree(pieces / measured)
    code, _, err = run(*study, "--store", tmp_path / "second")  # the precision is that of the pieces
    assert code == 0, err
    assert {each.facts["name"] for each in Store(tmp_path / "second").artifacts()} >= {"E1/train"}
    assert (pieces / measured).is_dir()
    assert trained.read_bytes() == before

    shutil.rmtree(pieces / measured)
    facts["result"]["fingerprints"]["best"] = "another"
    trained.write_text(json.dumps(facts))
    for _ in range(2):  # also where the other training lies in the store
        code, out, err = run(*study, "--store", tmp_path / "third")
        assert (code, out) == (2, "")
        assert "E1/train was trained again, since missing measurements need its weights, and it has other" in err
        assert f"PyTorch {facts['provenance']['libraries']['torch']}" in err
        assert not (pieces / measured).exists()

    facts["provenance"]["processor"] = "another processor"
    trained.write_text(json.dumps(facts))
    code, out, err = run(*study, "--store", tmp_path / "fourth")
    assert (code, out) == (2, "")
    assert "E1/train would have to be trained again" in err
    assert "on another processor, " in err
    assert not list(Store(tmp_path / "fourth").artifacts()), "nothing is trained first"

    code, _, err = run(*study, "--precision", "bfloat16", "--store", tmp_path / "third")
    assert code == 2
    assert "has the pieces of the study with dataset digits, precision float32, scale smoke, seed 0, not of" in err
    code, out, err = run("report", *of, "--store", tmp_path / "none", "--out", tmp_path / "report")
    assert code == 0, err


SETUPS = [
    Setup(scale=scale, dataset=name, train_size=train, test_size=test, seed=0)
    for scale in SCALES.values()
    for name, train, test in (("digits", 1347, 450), ("fashion-mnist", 60000, 10000))
]


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: f"{setup.scale.name}-{setup.dataset}")
def test_every_experiment_is_a_sound_graph_of_tasks(setup: Setup) -> None:
    tasks, wanted = tasks_of(choose_experiments([]), setup)
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names)
    assert set(wanted) == set(names)
    assert {task.kind for task in tasks} <= PRODUCERS.keys()
    chosen = ordered(tasks, wanted)
    assert len(set(keys(chosen, PRODUCERS, {}).values())) == len(chosen)
    for task in tasks:
        assert task.work > 0, task.name
        assert set(task.needs.values()) <= set(names), task.name
        assert task.config["dataset"] == setup.dataset
        assert 0 < task.config.get("images", 1) <= setup.test_size
        assert json.loads(json.dumps(task.config)).keys() == task.config.keys()


def test_an_experiment_alone_brings_what_it_needs() -> None:
    tasks, wanted = tasks_of(choose_experiments(["E11"]), SETUPS[0])
    assert {name.removeprefix("seed-1/").split("/")[0] for name in wanted} - {"E1"} == {"E11"}
    assert {task.name for task in ordered(tasks, wanted)} - set(wanted) == {"E1/train"}


def test_experiments_are_chosen_by_name_in_the_study_s_order() -> None:
    assert [experiment.name for experiment in choose_experiments(["E3", "E1"])] == ["E1", "E3"]
    assert [experiment.name for experiment in choose_experiments([])] == list(EXPERIMENTS)
    with pytest.raises(SettingError, match=r"unknown experiment 'e3'; known: E1, .*; did you mean E3\?"):
        choose_experiments(["e3"])
    with pytest.raises(SettingError, match=r"unknown experiment 'nonsense'; known: [^?]*$"):
        choose_experiments(["nonsense"])


def test_scales_are_found_by_name_and_shown_in_one_table() -> None:
    assert scale_by_name("full").decides
    assert [name for name, scale in SCALES.items() if scale.decides] == ["paper", "full"]
    with pytest.raises(SettingError, match="unknown scale 'huge'; known: smoke, quick, medium, paper, full"):
        scale_by_name("huge")
    rows = scale_table()
    assert len(rows) == len(fields(Scale)) - 1
    assert all(len(row) == 2 + len(SCALES) and row[-1] for row in rows)


def test_the_paper_s_numbers_are_those_of_the_study() -> None:
    """As the study's page has them; accuracies are fractions, times seconds."""
    stated = [each for each in vars(paper).values() if isinstance(each, paper.Statement)]
    accuracies = {0.937, 0.74, 0.99, 0.636, 0.3748, 0.7, 0.89, 0.83, 0.9376, 0.9378}
    assert {each.value for each in stated} == accuracies | {0.2374, 0.1919} | {4.12, 5.14, 6.18}
    assert {each.experiment for each in stated} <= EXPERIMENTS.keys()
    assert len({(each.experiment, each.what) for each in stated}) == len(stated)


# What the study must hold ---------------------------------------------------------------------------------------------
FULL = next(setup for setup in SETUPS if setup.scale.name == "full" and setup.dataset == "fashion-mnist")
MEDIUM = next(setup for setup in SETUPS if setup.scale.name == "medium" and setup.dataset == "fashion-mnist")


def _tasks(setup: Setup) -> dict[str, Task]:
    return {task.name: task for task in tasks_of(choose_experiments([]), setup)[0]}


def test_every_experiment_of_the_study_is_in_the_catalogue_in_order() -> None:
    assert [name for name in EXPERIMENTS if name != "E1+"] == [f"E{number}" for number in range(1, 14)]
    for setup in SETUPS:
        _, wanted = tasks_of(choose_experiments([]), setup)
        groups = {name.split("/")[0].split("-")[0] for name in wanted} - {"seed"}
        assert groups == {*EXPERIMENTS, "data"} - (set() if setup.scale.beyond_claims else {"E1+"})
    for experiment in EXPERIMENTS.values():
        assert experiment.title
        assert all(note.endswith(".") for note in experiment.notes)


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: f"{setup.scale.name}-{setup.dataset}")
def test_every_model_is_measured_clean_under_three_losses_and_by_a_strong_attack(setup: Setup) -> None:
    tasks, models = _tasks(setup), models_of(choose_experiments([]), setup)
    assert len({model.name for model in models}) == len(models)
    assert len({model.title for model in models}) == len(models)
    for model in models:
        measures = [tasks[model.artifact("clean")], *(tasks[model.artifact("fgsm", loss)] for loss in LOSSES)]
        bim = tasks[model.artifact("ball", "ce")]
        measures.append(bim)
        for loss, fgsm in zip(LOSSES, measures[1:], strict=False):
            assert (fgsm.config["attack"]["name"], fgsm.config["attack"]["loss"]) == ("fgsm", loss)
            assert fgsm.config["values"] == [0.0, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2]
        assert bim.config["attack"].items() >= {"name": "bim", "steps": 10, "clip": "ball", "loss": "ce"}.items()
        assert {0.05, 0.1, 0.2} <= set(bim.config["values"])
        if model.source.inference is None:
            strongest = tasks[model.artifact("pgd")]
            attacks = strongest.config["attacks"]
            assert set(attacks) == {"ce", "margin"}
            for loss, attack in attacks.items():
                assert (attack["name"], attack["loss"], attack["steps"]) == ("pgd", loss, 40)
                assert attack["restarts"] == setup.scale.pgd_restarts
        else:
            strongest = tasks[model.artifact("eot")]
            assert (
                strongest.config["attack"].items()
                >= {"name": "bim", "steps": 10, "loss": "ce", "eot_samples": 10}.items()
            )
            assert "eot_samples" not in bim.config["attack"]
        assert 0.1 in strongest.config["values"]
        for task in (*measures, strongest):
            assert task.needs == {"model": model.source.task}
            assert task.config["weights"] == model.source.weights
            assert task.config["inference"] == model.source.inference
            assert task.config["divide"] is None


def test_models_that_answer_at_random_are_judged_by_one_draw_and_by_expectation() -> None:
    """Noise at inference, and the Stochastic Affine Transformation, at every scale but quick."""
    for setup in SETUPS:
        tasks = _tasks(setup)
        random_ones = [model for model in models_of(choose_experiments([]), setup) if model.source.inference]
        expected = {"noise", "stochastic-affine"} if setup.scale.beyond_claims else set()
        assert {model.source.inference for model in random_ones} == expected
        for model in random_ones:
            one, several = tasks[model.artifact("ball", "ce")].config, tasks[model.artifact("eot")].config
            assert one["attack"] == {key: each for key, each in several["attack"].items() if key != "eot_samples"}
            assert one["images"] == several["images"]
            assert set(several["values"]) - {0.0} <= set(one["values"])
            assert model.artifact("pgd") not in tasks


def test_the_undefended_models_meet_pgd_where_they_still_stand() -> None:
    """E1 and E11 at eps 0.01 and 0.025, before they are at zero."""
    for name in ("E1", "E11"):
        assert {0.01, 0.025, 0.1} <= set(_tasks(FULL)[f"{name}/pgd"].config["values"])


def test_the_medium_scale_attacks_a_thousand_images_wherever_it_judges() -> None:
    for name, task in _tasks(MEDIUM).items():
        if task.kind in ("clean", "curve", "worst", "targeted", "masking", "hypotheses"):
            sizes = [task.config[key] for key in ("images", "gradient_images", "attacked_images") if key in task.config]
            assert min(sizes) >= 1000, name
    assert MEDIUM.scale.pgd_restarts == FULL.scale.pgd_restarts == 5
    apart = ("E1/epoch-", "E1-falling/", "E1+/trial-", "E13/", "seed-")
    assert set(_tasks(MEDIUM)) >= {name for name in _tasks(SETUPS[0]) if not name.startswith(apart)}


def test_the_paper_scale_has_every_model_of_medium_and_the_paper_s_sizes() -> None:
    setup = replace(FULL, scale=SCALES["paper"])
    names, medium = ({each.name for each in models_of(choose_experiments([]), each)} for each in (setup, MEDIUM))
    assert names == medium | {"E1-falling"}
    assert len(medium) == 32  # the study's 29, E9's two teachers, and E6 on E11
    tasks = _tasks(setup)
    trained = [task for task in tasks.values() if task.kind in ("train", "defend")]
    assert {(task.config["train_images"], task.config["validation_images"]) for task in trained} == {(54000, 6000)}
    for name, task in tasks.items():
        if task.kind == "hypotheses":
            assert task.config["images"] == 2000
        elif task.kind == "curve":
            of_e1 = any(f"{each}/" in name for each in ("E2", "E3", "E4"))
            assert task.config["images"] == (2000 if of_e1 else 1000), name
        elif task.kind == "clean":
            assert task.config["images"] == 10000


def test_tasks_that_decide_claims_run_first() -> None:
    _, wanted = tasks_of(choose_experiments([]), replace(FULL, scale=SCALES["paper"]))
    place = wanted.index
    assert (
        place("E1/train") < place("E2/fgsm/ce") < place("E6/train") < place("E9-20/range/ce") < place("E12-0.001/pgd")
    )
    assert place("E4/1-255/ce") < place("E11/pgd") < place("E5/train")
    assert place("E13/targeted/E6") < place("E12-0.0001/train")
    last = ["E12-0.001/pgd", "E6-stopped/train", "E1-falling/train", "seed-1/E6/clean", "E1+/train", "E5-speckle/train"]
    assert [place(name) for name in last] == sorted(map(place, last))
    assert place("E5-speckle/train") < place("E13-mix/train") < place("E13/search/student-8x2-1")


def test_a_further_seed_is_the_same_study_with_that_seed() -> None:
    """Its artifacts have the keys of `--seed 1`, so that neither is computed twice."""
    setup = replace(FULL, scale=SCALES["paper"])
    here, there = _tasks(setup), _tasks(replace(setup, seed=1))
    every = [task for task in here.values() if task.name.startswith("seed-1/")]
    assert {"seed-1/E1/train", "seed-1/E9-20/clean", "seed-1/E11/fgsm/ce"} <= {task.name for task in every}
    environment = {"torch": "2", "device": "cpu"}
    ours = keys(ordered(every, [task.name for task in every]), PRODUCERS, environment)
    theirs = keys(ordered(list(there.values()), list(there)), PRODUCERS, environment)
    for name, key in ours.items():
        assert key == theirs[name.removeprefix("seed-1/")], name


def test_e6_is_the_paper_s_adversarial_regularisation_of_e1() -> None:
    """One sign step of 0.2, weight 0.5, clipped below at 0.25 and above nowhere; patience 5."""
    tasks = _tasks(FULL)
    e6 = tasks["E6/train"]
    paper: dict[str, Any] = {"multiplier": 0.5, "step_size": 0.2, "norm": "linf", "clip_min": 0.25}
    assert e6.config["objective"] == {"name": "adversarial-regularization", "settings": paper}
    assert AdversarialRegularization(**paper).clip_max is None
    assert e6.config["training"]["patience"] == 5
    assert (e6.needs, e6.config["weights"]) == ({"start": "E1/train"}, {"start": "final"})
    stopped = tasks["E6-stopped/train"]
    assert (stopped.needs, stopped.config["weights"]) == ({"start": "E1/train"}, {"start": "best"})
    assert stopped.config["objective"] == e6.config["objective"]
    limited = {name: tasks[f"{name}/train"].config["objective"]["settings"] for name in ("E6-clipped", "E6-plain")}
    assert limited == {
        "E6-clipped": paper | {"clip_max": 1.0},
        "E6-plain": paper | {"clip_min": 0.0, "clip_max": 1.0},
    }
    weighted = [tasks[f"E13-weight-{each:g}/train"].config["objective"]["settings"] for each in FULL.scale.multipliers]
    assert weighted == [paper | {"multiplier": each} for each in FULL.scale.multipliers]


def test_e7_is_e6_on_e5() -> None:
    tasks = _tasks(FULL)
    assert tasks["E7/train"].config["objective"] == tasks["E6/train"].config["objective"]
    assert (tasks["E7/train"].needs, tasks["E7/train"].config["weights"]) == ({"start": "E5/train"}, {"start": "best"})
    e5 = tasks["E5/train"]
    assert e5.needs == {}
    assert e5.config["training"]["patience"] == 5
    assert e5.config["extra"] == [{"name": "gaussian-blur", "settings": {"size": 3, "sigma": 1.0}}]
    moved = {spec["name"]: spec["settings"] for spec in e5.config["augment"]}
    assert moved == {"affine": {"rotation": 90.0, "shift": 0.1, "scale": 0.0}, "flip": {}}


def test_e8_is_four_rounds_each_from_the_last() -> None:
    """0.9 CE + 0.1 adversarial is CE + 1/9 adversarial, up to scale; the last round is judged."""
    tasks = _tasks(FULL)
    before = ("E1/train", "final")
    for step in (0.1, 0.15, 0.2, 0.25):
        task = tasks[f"E8/train-{step:g}"]
        assert (task.needs["start"], task.config["weights"]["start"]) == before
        settings = task.config["objective"]["settings"]
        assert settings == {"multiplier": 1 / 9, "step_size": step, "norm": "linf", "clip_min": 0.25}
        assert task.config["training"]["patience"] == 5
        before = (task.name, "best")
    assert sum(name.startswith("E8/train") for name in tasks) == 4
    (judged,) = EXPERIMENTS["E8"].models(FULL)
    assert (judged.source.task, judged.source.weights) == before


@pytest.mark.parametrize(("experiment", "architecture"), [("E9", "paper-cnn"), ("E10", "paper-student")])
def test_students_are_taught_at_their_own_temperature(experiment: str, architecture: str) -> None:
    """At 1 by E1 itself, which is as over-fitted as the other teachers; nobody stops early."""
    tasks = _tasks(FULL)
    teachers = [f"E9-teacher-{each}" for each in (20, 100)]
    models = [model for model in EXPERIMENTS[experiment].models(FULL) if model.name not in teachers]
    assert [model.name for model in models] == [f"{experiment}-{each:g}" for each in (1, 20, 100)]
    for model, temperature in zip(models, (1.0, 20.0, 100.0), strict=True):
        task = tasks[model.source.task]
        teacher = "E1/train" if temperature == 1 else f"E9/teacher-{temperature:g}"
        assert (task.needs, task.config["weights"]) == ({"teacher": teacher}, {"teacher": "final"})
        assert task.config["objective"] == {"name": "distillation", "settings": {"temperature": temperature}}
        assert task.config["architecture"] == architecture
        assert "patience" not in task.config["training"]
        assert model.source.weights == "final"
        assert tasks[teacher].config["training"]["continue_after_stop"]
        assert tasks[model.artifact("clean-best")].config["weights"] == "best"
        if temperature == 1:
            assert model.artifact("divided") not in tasks
        else:
            taught = {"name": "at-temperature", "settings": {"temperature": temperature}}
            assert tasks[teacher].config["objective"] == taught
            assert tasks[model.artifact("divided")].config["divide"] == temperature


def test_teachers_are_measured_as_their_students_are() -> None:
    tasks, models = _tasks(FULL), {model.name: model for model in EXPERIMENTS["E9"].models(FULL)}
    for temperature in (20, 100):
        teacher, student = models[f"E9-teacher-{temperature}"], models[f"E9-{temperature}"]
        assert (teacher.source.task, teacher.source.weights) == (f"E9/teacher-{temperature}", "final")
        for measure in ("fgsm", "ball", "range"):
            one, other = (tasks[each.artifact(measure, "ce")].config for each in (teacher, student))
            assert [one[key] for key in ("attack", "values", "images")] == [
                other[key] for key in ("attack", "values", "images")
            ]


def test_the_further_work_of_the_paper_is_all_there() -> None:
    """Section 7: on a regularised model, the mixture, the weights, a deeper network, an early teacher, a search."""
    tasks = _tasks(FULL)
    start = tasks["E13-regularised/train"].needs["start"]
    assert tasks[start].config["training"]["weight_decay"] > 0
    mix = tasks["E13-mix/train"].config
    assert mix["objective"]["settings"]["multiplier"] == 1.0
    assert {spec["share"] for spec in mix["augment"]} == {0.5}
    assert {f"E13-weight-{each:g}/train" for each in FULL.scale.multipliers} <= set(tasks)
    deeper = tasks["E13-resnet/train"].config
    assert (deeper["architecture"], deeper["training"]["weight_decay"]) == ("resnet-14", 1e-4)
    early = tasks["E13-early-teacher/train"]
    assert early.config["weights"] == {"teacher": "best"}
    assert tasks[early.needs["teacher"]].config["training"]["patience"] == 5
    assert early.config["training"] == tasks["E9-20/train"].config["training"]
    found = {name for name in tasks if name.startswith("E13/search/")}
    assert len(found) == len(FULL.scale.students) * len(FULL.scale.student_dropouts)
    assert {name.replace("/search/", "/found/") for name in found} <= set(tasks)
    matrices = {name.removeprefix("E13/targeted/") for name in tasks if name.startswith("E13/targeted/")}
    assert matrices == {"E1", "E11", "E6"}
