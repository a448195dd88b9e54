"""The lists of attacks that are budgets."""

from dataclasses import replace
from typing import get_args

import pytest

from casemate.attacks import APGD, AbstractMinimumNormAttack, AutoAttack, TargetedAPGD, TargetedFAB
from casemate.errors import SettingError
from casemate.evaluation import BUDGETS_IN_WORDS, Budget
from casemate.evaluation.budgets import DRAWS, attacks_for, budgets_in
from casemate.norms import Norm

CONVEX: tuple[Norm, ...] = ("linf", "l2", "l1")


@pytest.mark.parametrize("norm", CONVEX)
def test_autoattack_is_the_published_list(norm: Norm) -> None:
    found = attacks_for("autoattack", norm, 0.3, randomised=False)
    assert list(found) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert found == AutoAttack(eps=0.3, norm=norm, loss="torch-ce").attacks()


@pytest.mark.parametrize("norm", CONVEX)
@pytest.mark.parametrize("budget", ["standard", "thorough"])
def test_a_larger_budget_has_all_attacks_of_autoattack(norm: Norm, budget: Budget) -> None:
    found = attacks_for(budget, norm, 0.3, randomised=False)
    for name, attack in AutoAttack(eps=0.3, norm=norm).attacks().items():
        ours = found[name]
        if isinstance(attack, APGD) and isinstance(ours, APGD):
            assert ours.restarts >= attack.restarts
            ours = replace(ours, restarts=attack.restarts)
        assert ours == attack


@pytest.mark.parametrize("norm", CONVEX)
def test_minimum_norm_attacks_come_first_and_stop_at_the_smallest_eps(norm: Norm) -> None:
    names = list(found := attacks_for("standard", norm, 0.3, randomised=False))
    first = names[: names.index("apgd-ce")]
    assert first
    for name in first:
        attack = found[name]
        assert isinstance(attack, AbstractMinimumNormAttack)
        assert attack.norm == norm
        assert getattr(attack, "stop_at_distance") == 0.3  # noqa: B009 (not of every minimum-norm attack)
    assert not [each for each in names[len(first) :] if type(found[each]) in {type(found[name]) for name in first}]


def test_in_l0_there_is_no_autoattack() -> None:
    assert budgets_in("l0") == ["quick", "standard", "thorough"]
    assert budgets_in("l1") == list(get_args(Budget))
    with pytest.raises(SettingError, match=r"budget autoattack in l0.*not defined; expected standard"):
        attacks_for("autoattack", "l0", 3, randomised=False)


@pytest.mark.parametrize("norm", get_args(Norm))
def test_a_randomised_model_gets_attacks_of_its_own(norm: Norm) -> None:
    for budget in budgets_in(norm):
        found = attacks_for(budget, norm, 3, randomised=True)
        assert not [each for each in found.values() if isinstance(each, TargetedFAB | TargetedAPGD)]
        assert not [each for each in found.values() if isinstance(each, AbstractMinimumNormAttack)]


def test_every_budget_is_described() -> None:
    assert set(BUDGETS_IN_WORDS) == set(DRAWS) == set(get_args(Budget))
