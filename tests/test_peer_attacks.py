"""The comparison of all attacks with other libraries: its rules, and that what is missing is said loudly."""

import importlib
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from casemate.attacks import AbstractAttack
from casemate.models import ModelMetadata, create, save

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "attacks"


@pytest.fixture(scope="module")
def judge() -> ModuleType:
    """`judge.py`, as a module."""
    return loaded("judge")


def loaded(name: str) -> ModuleType:
    """One of the scripts, as a module; they import one another by name."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


def outcome(judge: ModuleType, fooled: list[bool], distance: list[float]) -> object:
    """An outcome made up."""
    return judge.Outcome(torch.tensor(fooled).long(), torch.tensor(fooled), torch.tensor(distance).double(), 0)


def test_luck_is_the_sign_test(judge: ModuleType) -> None:
    assert judge.luck(0, 0) == 1
    assert judge.luck(5, 0) == 1 / 32
    assert judge.luck(0, 5) == 1
    assert judge.luck(2, 1) == 0.5


def test_in_a_ball_more_than_two_points_left_is_worse(judge: ModuleType) -> None:
    far = [1.0] * 100
    for behind, worse in ((0, False), (2, False), (3, True)):
        ours = outcome(judge, [False] * behind + [True] * (100 - behind), far)
        found = judge.judge_ball(ours, outcome(judge, [True] * 100, far), random=False)
        assert found["worse"] is worse
        assert found["alike"] == 100 - behind
        assert found["difference"] == pytest.approx(behind)


def test_a_difference_that_luck_can_make_is_not_worse(judge: ModuleType) -> None:
    far = [1.0] * 100
    for behind, worse in ((4, False), (5, True)):
        ours = outcome(judge, [False] * behind + [True] * (100 - behind), far)
        assert judge.judge_ball(ours, outcome(judge, [True] * 100, far), random=True)["worse"] is worse


def test_distances_are_compared_where_both_fool(judge: ModuleType) -> None:
    ours = outcome(judge, [True, True, True, False], [1.0, 2.0, 3.0, 0.1])
    theirs = outcome(judge, [True, True, False, True], [1.0, 1.8, 0.1, 9.0])
    found = judge.judge_nearest(ours, theirs, random=False)
    assert found["both"] == 2
    assert found["ours_mean"] == 1.5
    assert found["theirs_mean"] == pytest.approx(1.4)
    assert found["nearer_share"] == 0
    assert found["farther_share"] == 0.5
    for times, worse in ((1.04, False), (1.06, True)):
        ours, theirs = (outcome(judge, [True] * 3, [each] * 3) for each in (times, 1.0))
        assert judge.judge_nearest(ours, theirs, random=False)["worse"] is worse
    none = outcome(judge, [False], [1.0])
    assert judge.judge_nearest(none, outcome(judge, [True], [1.0]), random=False)["worse"] is True


def test_an_image_outside_ball_or_bounds_does_not_count(judge: ModuleType) -> None:
    model = create("paper-student", input_shape=(1, 28, 28), classes=tuple("0123456789"), seed=0).eval()
    clean = torch.rand(3, 1, 28, 28) * 0.5 + 0.2
    with torch.no_grad():
        labels = (model(clean).argmax(1) + 1) % 10  # wrong from the start, so that all count as fooled
    moved = clean.clone()
    moved[1] += 0.01
    moved[2] -= 1.0
    found = judge.outcome(model, moved, clean, labels, "linf", 0.005)
    assert found.outside == 2
    assert found.fooled.tolist()[0] is True
    assert found.fooled[1:].any().item() is False
    assert judge.outcome(model, moved[:2], clean[:2], labels[:2], "linf", None).outside == 0


def test_every_attack_of_the_plan_can_be_built() -> None:
    plan = loaded("plan")
    keys = [(case.name, case.norm) for case in plan.CASES]
    assert len(set(keys)) == len(keys)
    for case in plan.CASES:
        assert isinstance(case.ours(case.settings, case.norm, 0.5), AbstractAttack)
        assert case.peers


@pytest.mark.integration
def test_a_missing_environment_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare = loaded("compare")
    model = create("paper-student", input_shape=(1, 28, 28), classes=tuple("0123456789"), seed=0)
    path = save(
        model, tmp_path / "model.safetensors", ModelMetadata(architecture="paper-student", dataset="fashion-mnist")
    )
    arguments = Namespace(
        model=path,
        name="untrained",
        linf=0.1,
        l2=1.0,
        l1=5.0,
        only=["PGD"],
        n=2,
        libraries=["foolbox"],
        seed=0,
        out=tmp_path / "result.json",
        data_dir=None,
        python=tmp_path / "none",
    )
    threads = torch.get_num_threads()
    assert compare.run(arguments) == 2
    torch.set_num_threads(threads)
    assert "NOT COMPARED: foolbox" in capsys.readouterr().err
    assert not arguments.out.exists()
