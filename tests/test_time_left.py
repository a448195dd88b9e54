"""The time left: its pilot, which changes no result, and its range, which holds what a run then takes."""

import itertools
import re

import numpy as np
import pytest
import torch

from casemate.attacks import PGD, AbstractAttack, Passes, Square
from casemate.evaluation import cascade, steps
from casemate.evaluation.cascade import run_cascade
from casemate.evaluation.cost import checks_afterwards
from casemate.evaluation.intervals import Estimate, share
from casemate.evaluation.time_left import Afterwards, TimeLeft, cost_of, part_size, time_left
from casemate.evaluation.verdict import verdict_on
from conftest import Listener, tiny_images
from test_record import thirds

IMAGES = tiny_images(600, noise=90.0)
EPS = 0.05
ATTACKS: dict[str, AbstractAttack] = {
    "pgd": PGD(eps=EPS, steps=5),
    "pgd again": PGD(eps=EPS, steps=20),
    "square": Square(eps=EPS, n_queries=20),
}


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [1]), (95, [95]), (96, [16, 80]), (400, [20, 20, 40, 320]), (10_000, [64, 64, 128, 256, 512, 1024, 7952])],
)
def test_the_first_parts_of_the_first_attack_are_small(count: int, sizes: list[int]) -> None:
    found: list[int] = []
    while sum(found) < count:
        found.append(part_size(count, sum(found)))
    assert found == sizes


def test_a_wide_range_is_said_late_and_a_narrow_one_at_once() -> None:
    assert TimeLeft(1.0, 5.0).is_known(0.1)
    assert not TimeLeft(1.0, 6.0).is_known(0.1)
    assert TimeLeft(1.0, 60.0).is_known(2.1)


def test_the_pilot_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run_cascade(thirds(), ATTACKS, IMAGES, [EPS / 2, EPS])
    monkeypatch.setattr(steps, "part_size", lambda given, tried: given)
    whole = run_cascade(thirds(), ATTACKS, IMAGES, [EPS / 2, EPS])
    assert np.array_equal(found.first_success, whole.first_success)
    assert np.array_equal(found.robust, whole.robust)
    assert torch.allclose(found.adversarial, whole.adversarial, atol=1e-6)
    for one, other in zip(found.attempts, whole.attempts, strict=True):
        assert (one.attack, one.eps, one.tried, one.fooled) == (other.attack, other.eps, other.tried, other.fooled)
        assert (one.passes, one.status) == (other.passes, other.status)


def test_after_an_attack_the_range_is_that_of_its_survivors() -> None:
    half = share(np.arange(100) < 50)
    rest = {"cost": 60.0, "most": 60.0, "later": 1000.0, "afterwards": Afterwards(Passes(), Passes(1000, 500))}
    found = time_left(1e-3, half, given=100, rest=0, **rest)  # type: ignore[arg-type]
    assert found.low < 1e-3 * (50 * 1000 + 2000) < found.high
    assert found.high / found.low < 4
    pilot = time_left(1e-3, share(np.arange(10) < 5), given=100, rest=90, **rest)  # type: ignore[arg-type]
    assert pilot.low < found.low < found.high < pilot.high


def test_what_has_fallen_has_few_checks_left() -> None:
    after = Afterwards(Passes(10), Passes(1000, 1000), fallen_up_to=20)
    none, one_more, all_of_them = (Estimate(value, value, value, 200) for value in (0.1, 0.105, 1.0))
    times = [
        time_left(1.0, each, given=200, rest=0, cost=1, most=1, later=0, afterwards=after)
        for each in (none, one_more, all_of_them)
    ]
    assert times[0].high < 20
    assert times[1] == times[2]
    assert 20 < times[1].low < 3000 < times[1].high


def test_of_few_images_left_to_an_attack_many_may_withstand_it_and_the_model_has_fallen() -> None:
    """What counts is the share of all images, not of those that the attack was given."""
    after = Afterwards(Passes(10), Passes(1000, 1000), fallen_up_to=20)
    half = share(np.arange(16) < 8)
    found = time_left(1.0, half, given=16, rest=0, cost=1, most=1, later=0, afterwards=after)
    assert found.high < 20


@pytest.mark.parametrize(("classes", "border"), [(2, 100), (10, 20), (1000, 11)])
def test_where_a_model_has_fallen_is_the_rule_of_the_verdict(classes: int, border: int) -> None:
    labels = np.arange(200) % classes

    def falls(robust: int) -> bool:
        found = verdict_on(
            0.1,
            norm="linf",
            budget="quick",
            correct=np.ones(200, dtype=bool),
            withstood=np.arange(200) < robust,
            labels=labels,
            classes=classes,
            findings=[],
        )
        return found.fallen and not found.undecided

    assert checks_afterwards(falls, 200, thorough=False).fallen_up_to == border
    assert checks_afterwards(falls, 200, thorough=True).cost(0) == checks_afterwards(falls, 200, thorough=True).cost(
        200
    )


def test_a_backward_pass_counts_as_two() -> None:
    assert cost_of(Passes(3, 4)) == 11


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(3.0, 80.0, "3.0 s to 1 min 20 s"), (2.01, 2.02, "about 2.0 s"), (0, 7000, "0.0 s to 1 h 57 min")],
)
def test_a_range_is_written_with_units(low: float, high: float, text: str) -> None:
    assert str(TimeLeft(low, high)) == text


def test_the_range_comes_after_the_pilot_and_holds(monkeypatch: pytest.MonkeyPatch, listener: Listener) -> None:
    """With a clock that counts passes: the time that every attack then takes is known."""
    clock = itertools.count()
    monkeypatch.setattr(cascade.time, "perf_counter", lambda: float(next(clock)))
    run_cascade(thirds(), ATTACKS, IMAGES[:500], [EPS], observer=listener)
    (said,) = [words for words in listener.said if words.startswith("Time left")]
    assert re.fullmatch(r"Time left, by pgd on \d+ of 500 images: \S+ .*s to .*", said)
    notes = [note for note in listener.notes if "to go" in note]
    assert [note.split(" at eps")[0] for note in notes] == list(ATTACKS)


def test_of_a_short_run_nothing_is_said(listener: Listener) -> None:
    run_cascade(thirds(), {"pgd": PGD(eps=EPS, steps=2)}, IMAGES[:100], [EPS], observer=listener)
    assert listener.said == []
