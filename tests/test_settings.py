"""Settings: what annotations say of fields is checked when a dataclass is made, and stored in one form."""

import math
from dataclasses import FrozenInstanceError, dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch

from casemate.attacks import APGD, EOT, FAB, FGSM, PGD, AutoAttack, Square, UniformNoise
from casemate.defenses import AdversarialTraining
from casemate.errors import SettingError
from casemate.norms import AnyNorm, Ball, Eps
from casemate.rows import Rows
from casemate.settings import at_least, between, expect, not_negative, one_of, positive, rules_of
from oracles import as_installed


@dataclass(frozen=True, kw_only=True)
class Example:
    """One field for each kind of rule."""

    count: Annotated[int, at_least(1)] = 1
    pairs: Annotated[int, at_least(2, "a pair")] | None = None
    share: Annotated[float, between(0, 1, "a share")] = 0.5
    open_share: Annotated[float, between(0, 1, without_low=True, without_high=True)] = 0.5
    sigma: Annotated[float, between(0.1, math.inf, unit="in pixels", without_high=True)] = 1.0
    weight: Annotated[float, not_negative()] = 0.0
    rate: Annotated[float, positive("a rate")] | None = 1.0
    kind: Annotated[Literal["one", "Two"], one_of("one", "Two", why="no other")] = "one"
    eps: Eps = 0.1
    step: Eps | None = None
    norm: AnyNorm = "l2"
    free: Any = None

    def __post_init__(self) -> None:
        expect(self)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"count": 0}, "count = 0; expected at least 1"),
    ({"count": 1.5}, "count = 1.5; expected a whole number, at least 1"),
    ({"count": None}, "count = None; expected a whole number, at least 1"),
    ({"count": "2"}, "count = '2'; expected a whole number, at least 1"),
    ({"pairs": 1}, "pairs = 1; expected at least 2 (a pair)"),
    ({"share": -0.1}, "share = -0.1; expected a share from 0 to 1"),
    ({"share": math.nan}, "share = nan; expected a share from 0 to 1"),
    ({"share": None}, "share = None; expected a share from 0 to 1"),
    ({"open_share": 0.0}, "open_share = 0.0; expected between 0 and 1"),
    ({"open_share": 1}, "open_share = 1; expected between 0 and 1"),
    ({"sigma": math.inf}, "sigma = inf; expected 0.1 or more and finite, in pixels"),
    ({"weight": -1}, "weight = -1; expected zero or more and finite"),
    ({"rate": 0.0}, "rate = 0.0; expected positive and finite (a rate)"),
    ({"kind": "three"}, "kind = 'three'; expected one or Two (no other)"),
    ({"kind": 2}, "kind = 2; expected one or Two (no other)"),
    ({"eps": "8/0"}, "eps '8/0' is not a number; write 0.03 or 8/255"),
    ({"eps": -1}, "eps = -1; expected zero or more and finite, in units of pixels within [0, 1]"),
    ({"eps": None}, "eps None is not a number; write 0.03 or 8/255"),
    ({"step": "x"}, "step 'x' is not a number; write 0.03 or 8/255"),
    ({"norm": "l3"}, "norm = 'l3'; expected linf, l2, l1 or l0"),
]


@pytest.mark.parametrize(("given", "words"), BAD)
def test_a_value_outside_its_rule_is_refused_in_the_same_words_everywhere(given: dict[str, Any], words: str) -> None:
    with as_installed(), pytest.raises(SettingError) as caught:
        Example(**given)
    assert str(caught.value) == words


def test_what_is_stored_has_one_form() -> None:
    made = Example(kind="TWO", norm="Linf", eps="8/255", step="0.25", count=np.int64(3))  # type: ignore[arg-type]
    assert (made.kind, made.norm, made.eps, made.step, made.count) == ("Two", "linf", 8 / 255, 0.25, 3)
    assert type(made.count) is int
    assert Example(rate=None, pairs=None, step=None) == Example(rate=None)
    with pytest.raises(FrozenInstanceError):
        made.count = 4  # type: ignore[misc]


def test_the_rules_can_be_shown() -> None:
    rules = rules_of(Example)
    assert "free" not in rules
    assert rules["count"].expected == "at least 1"
    assert rules["norm"].choices == ("linf", "l2", "l1", "l0")
    assert rules_of(APGD)["rho"].expected == "a share of the steps from 0 to 1"
    assert rules_of(PGD)["step_size"] is rules_of(FGSM)["eps"]


def test_attacks_take_radii_and_steps_as_text_and_norms_in_any_case() -> None:
    with as_installed():
        attack = PGD(eps="8/255", step_size="2/255", norm="Linf")  # type: ignore[arg-type]
        assert attack == PGD(eps=8 / 255, step_size=2 / 255)
        assert attack.record()["eps"] == 8 / 255
        for kind in (FGSM, APGD, Square, UniformNoise, AutoAttack, AdversarialTraining):
            assert kind(eps="8/255", norm="L2") == kind(eps=8 / 255, norm="l2")  # type: ignore[arg-type]
        assert FAB(norm="L1", restart_eps="1/2") == FAB(norm="l1", restart_eps=0.5)  # type: ignore[arg-type]
        assert EOT(attack=attack).ball() == Ball(eps=8 / 255, norm="LINF")  # type: ignore[arg-type]
        with pytest.raises(SettingError, match="step_size 'x' is not a number"):
            PGD(eps=0.1, step_size="x")  # type: ignore[arg-type]
        with pytest.raises(SettingError, match=r"steps = 2.5; expected a whole number"):
            PGD(eps=0.1, steps=2.5)  # type: ignore[arg-type]


@dataclass(frozen=True)
class State(Rows):
    """Rows of several kinds, and what all share."""

    place: torch.Tensor
    inner: "State | None"
    name: str


def test_rows_are_chosen_and_put_together() -> None:
    state = State(torch.arange(4), State(10 * torch.arange(4), None, "inner"), "outer")
    for chosen, left in ((torch.tensor([True, False, False, True]), [0, 3]), (torch.tensor([2, 0]), [2, 0])):
        some = state[chosen]
        assert some.inner is not None
        assert (some.place.tolist(), some.inner.place.tolist()) == (left, [10 * each for each in left])
        assert (some.name, some.inner.name) == ("outer", "inner")
    assert state[1:3].place.tolist() == [1, 2]
    changed = state.put(torch.tensor([3, 1]), State(torch.tensor([7, 8]), State(torch.tensor([70, 80]), None, ""), ""))
    assert changed.inner is not None
    assert (changed.place.tolist(), changed.inner.place.tolist()) == ([0, 8, 2, 7], [0, 80, 20, 70])
    assert (changed.name, state.place.tolist()) == ("outer", [0, 1, 2, 3])
