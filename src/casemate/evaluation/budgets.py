"""The budgets of an evaluation: fixed lists of attacks.

Minimum-norm attacks come first: one run of theirs serves every eps, and takes a small part of the time that AutoAttack
takes at one eps. Which of them are in a budget, `benchmarks/strength/ablation.py` decides.
"""

from collections.abc import Mapping
from typing import Literal, get_args

from casemate.attacks import (
    ALMA,
    APGD,
    EAD,
    FMN,
    PDGD,
    PDPGD,
    PGD,
    AbstractAttack,
    AutoAttack,
    CarliniWagner,
    DeepFool,
    SigmaZero,
    SparseRS,
    Square,
    TargetedAPGD,
)
from casemate.errors import SettingError
from casemate.norms import Norm

Budget = Literal["quick", "autoattack", "standard", "thorough"]

DRAWS: Mapping[Budget, int] = {"quick": 5, "autoattack": 20, "standard": 20, "thorough": 20}
"""Number of passes whose logits are averaged for a prediction of a model with random outputs, by budget."""
BUDGETS_IN_WORDS: Mapping[Budget, str] = {
    "quick": "PGD, APGD and Square, few steps each: a first estimate",
    "autoattack": "AutoAttack standard, exactly as published",
    "standard": "AutoAttack standard and minimum-norm attacks",
    "thorough": "AutoAttack plus, PGD with restarts and more minimum-norm attacks; and every check",
}

_LONG = 1000
"""Steps of the minimum-norm attacks that still gain by more than 300, by `ablation.py`."""


def budgets_in(norm: Norm) -> list[Budget]:
    """The budgets that there are in a norm: all, but AutoAttack is not defined in L0."""
    return [each for each in get_args(Budget) if norm != "l0" or each != "autoattack"]


def attacks_for(budget: Budget, norm: Norm, eps: float, *, randomised: bool) -> dict[str, AbstractAttack]:
    """Make the attacks of a budget, by name, in the order in which they are to be run.

    Args:
        norm: of the attacks.
        eps: of the attacks within a ball, in pixel units; minimum-norm attacks stop at that distance.
        randomised: the model's outputs are random, so that gradients have to be averaged over several passes.

    Raises:
        SettingError: an unknown budget, or autoattack in L0.
    """
    if budget not in get_args(Budget):
        raise SettingError(f"budget {budget!r}; expected one of {', '.join(get_args(Budget))}")
    if budget not in budgets_in(norm):
        raise SettingError(f"budget {budget} in {norm}, in which AutoAttack is not defined; expected standard")
    if randomised:
        # the evaluation attacks the mean of several predictions, so the gradients of these attacks are averages already
        return _averaged(budget, norm, eps)
    if norm == "l0":
        return _fewest_values(budget, eps)
    if budget == "quick":
        return {
            "pgd": PGD(eps=eps, norm=norm, steps=20),
            "apgd-ce": APGD(eps=eps, norm=norm, steps=50),
            "apgd-t": TargetedAPGD(eps=eps, norm=norm, steps=50, classes=3),
            "square": Square(eps=eps, norm=norm, n_queries=500, rescale_schedule=True),
        }
    if budget == "autoattack":
        return AutoAttack(eps=eps, norm=norm, loss="torch-ce").attacks()
    if budget == "standard":
        return _nearest(norm, 300, eps) | AutoAttack(eps=eps, norm=norm).attacks()
    attacks = _nearest(norm, _LONG, eps)
    attacks |= AutoAttack(eps=eps, norm=norm, version="standard" if norm == "l1" else "plus").attacks()
    attacks["pgd"] = PGD(eps=eps, norm=norm, steps=100, restarts=10)
    if norm == "l1":
        return attacks | {"ead": EAD()}
    return attacks | {"deepfool": DeepFool(norm=norm), "carlini-wagner": CarliniWagner(norm=norm)}


def _averaged(budget: Budget, norm: Norm, eps: float) -> dict[str, AbstractAttack]:
    """The attacks of a budget on a model whose outputs are random."""
    steps, n_queries = (30, 100) if budget == "quick" else (100, 1000)
    # an early stop would count lucky draws
    pgd = PGD(eps=eps, norm=norm, steps=steps, keep="last")
    if norm == "l0":
        return {"pgd": pgd, "sparse-rs": SparseRS(eps=eps, n_queries=n_queries)}
    if budget == "autoattack":
        # version rand, which averages gradients over 20 passes
        return {
            "apgd-ce": APGD(eps=eps, norm=norm, loss="torch-ce"),
            "apgd-dlr": APGD(eps=eps, norm=norm, loss="dlr"),
        }
    return {
        "pgd": pgd,
        "apgd-ce": APGD(eps=eps, norm=norm, steps=steps),
        "apgd-dlr": APGD(eps=eps, norm=norm, steps=steps, loss="dlr"),
        "square": Square(eps=eps, norm=norm, n_queries=n_queries, rescale_schedule=True),
    }


def _nearest(norm: Norm, steps: int, eps: float) -> dict[str, AbstractAttack]:
    """The minimum-norm attacks of a budget in Linf, L2 or L1, which stop at the distance eps.

    Those that gain by it take more steps than the others.
    """
    attacks: dict[str, AbstractAttack] = {}
    if norm == "l2":
        attacks["pdgd"] = PDGD(steps=steps, stop_at_distance=eps)
        attacks["alma"] = ALMA(norm=norm, steps=_LONG, stop_at_distance=eps)
    elif norm == "l1":
        attacks["pdpgd"] = PDPGD(norm=norm, steps=_LONG, stop_at_distance=eps)
    attacks["fmn"] = FMN(norm=norm, steps=steps, stop_at_distance=eps)
    return attacks


def _fewest_values(budget: Budget, eps: float) -> dict[str, AbstractAttack]:
    """The attacks of a budget in L0."""
    steps, n_queries = {"quick": (100, 500), "standard": (300, 5000), "thorough": (1000, 10_000)}[budget]
    attacks: dict[str, AbstractAttack] = {
        "sigma-zero": SigmaZero(steps=steps, stop_at_distance=eps),
        "pdpgd": PDPGD(norm="l0", steps=steps, stop_at_distance=eps),
        "fmn": FMN(norm="l0", steps=steps, stop_at_distance=eps),
        "sparse-rs": SparseRS(eps=eps, n_queries=n_queries),
    }
    if budget == "quick":
        del attacks["fmn"]
    return attacks
