"""An evaluation in L0: curves, attacks, verdict and record, on a classifier whose exact answer is known."""

from pathlib import Path

import numpy as np
import pytest
import torch

from casemate import PGD, AutoAttack, eps_curve, evaluate, make_record, verify_record
from casemate.data import LabelledImages
from casemate.errors import SettingError
from casemate.evaluation.budgets import Budget, attacks_for
from casemate.norms import Ball
from casemate.units import EpsIssueKind, find_eps_issue
from oracles import PIXELS, Linear, room
from test_carlini_wagner import linear

VALUES = [1.0, 2.0, 3.0]


def fewest(problem: Linear) -> torch.Tensor:
    """How many values have to change for each image, exactly: the steepest go to their bounds first."""
    gains = (problem.slope.abs() * room(problem.images.flatten(1).double(), problem.slope)).sort(1, descending=True)
    return (gains.values.cumsum(1) < problem.margin(problem.images).detach().unsqueeze(1)).sum(1) + 1


@pytest.fixture(scope="module")
def problem() -> Linear:
    """Images that take one to several values."""
    return linear(4, gap=6.0)


@pytest.mark.parametrize("budget", ["quick", "standard"])
def test_an_evaluation_finds_the_exact_robust_accuracy(problem: Linear, budget: Budget) -> None:
    exact = fewest(problem)
    assert 0 < (exact > 2).sum() < len(exact)
    found = evaluate(
        problem.model,
        problem.images,
        problem.labels,
        eps=VALUES,
        norm="l0",
        budget=budget,
        force=True,
    )
    assert [each.value for each in found.robust] == [float((exact > eps).double().mean()) for eps in VALUES]
    assert "eps 3 (l0" in str(found)
    assert all(each.severity != "voids" for each in found.findings if each.check != "black-box-stronger")


def test_a_record_is_checked_in_values(problem: Linear, tmp_path: Path) -> None:
    found = evaluate(problem.model, problem.images, problem.labels, eps=2, norm="l0", budget="quick", force=True)
    record, _ = make_record(found, problem.model, name="linear", data="images")
    assert record.norm == "l0"
    moved = record.distance[record.distance > 0]
    assert (moved <= 2).all()
    assert torch.equal(moved, moved.round())
    images = LabelledImages(pixels=problem.images, labels=problem.labels)
    checked = verify_record(record, problem.model, images=images)
    assert checked.holds
    found.report(tmp_path / "out")
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_curve_of_pgd_in_l0(problem: Linear) -> None:
    """At every number of values within reach of the exact accuracy, and not below it."""
    exact = fewest(problem).numpy()
    curve = eps_curve(problem.model, PGD(eps=1, norm="l0", steps=20), problem.images, VALUES, labels=problem.labels)
    for column, eps in enumerate(VALUES):
        assert np.array_equal(curve.worst[:, column], exact > eps)


def test_autoattack_has_no_l0() -> None:
    with pytest.raises(SettingError, match="for l0 take"):
        AutoAttack(eps=3, norm="l0")
    assert list(attacks_for("standard", "l0", 3, randomised=False)) == ["sigma-zero", "pdpgd", "fmn", "sparse-rs"]


def test_an_eps_that_holds_every_image_is_noticed() -> None:
    issue = find_eps_issue(Ball(eps=PIXELS, norm="l0"), (0.0, 1.0), PIXELS)
    assert issue is not None
    assert issue.kind is EpsIssueKind.ABOVE
    assert find_eps_issue(Ball(eps=PIXELS - 1, norm="l0"), (0.0, 255.0), PIXELS) is None
