"""The budgets of an evaluation: three fixed lists of attacks."""

from collections.abc import Mapping
from typing import Literal, get_args

from casemate.attacks import (
    APGD,
    EAD,
    FMN,
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

Budget = Literal["quick", "standard", "thorough"]

DRAWS: Mapping[Budget, int] = {"quick": 5, "standard": 20, "thorough": 20}
"""Number of passes whose logits are averaged for a prediction of a model with random outputs, by budget."""
BUDGETS_IN_WORDS: Mapping[Budget, str] = {
    "quick": "PGD, APGD and Square, few steps each: a first estimate",
    "standard": "AutoAttack standard",
    "thorough": "AutoAttack plus, PGD with restarts and minimum-norm attacks; and every check",
}


def attacks_for(budget: Budget, norm: Norm, eps: float, *, randomised: bool) -> dict[str, AbstractAttack]:
    """Make the attacks of a budget, by name, in the order in which they are to be run.

    Args:
        norm: of the attacks.
        eps: of the attacks within a ball, in pixel units.
        randomised: the model's outputs are random, so that gradients have to be averaged over several passes.

    Raises:
        SettingError: an unknown budget.
    """
    if budget not in get_args(Budget):
        raise SettingError(f"budget {budget!r}; expected one of {', '.join(get_args(Budget))}")
    if norm == "l0":
        return _fewest_values(budget, eps, randomised=randomised)
    if randomised:
        # the evaluation attacks the mean of several predictions, so the gradients of these attacks are averages already
        steps, n_queries = (30, 100) if budget == "quick" else (100, 1000)
        return {
            "pgd": PGD(eps=eps, norm=norm, steps=steps, keep="last"),  # an early stop would count lucky draws
            "apgd-ce": APGD(eps=eps, norm=norm, steps=steps),
            "apgd-dlr": APGD(eps=eps, norm=norm, steps=steps, loss="dlr"),
            "square": Square(eps=eps, norm=norm, n_queries=n_queries, rescale_schedule=True),
        }
    if budget == "quick":
        return {
            "pgd": PGD(eps=eps, norm=norm, steps=20),
            "apgd-ce": APGD(eps=eps, norm=norm, steps=50),
            "apgd-t": TargetedAPGD(eps=eps, norm=norm, steps=50, classes=3),
            "square": Square(eps=eps, norm=norm, n_queries=500, rescale_schedule=True),
        }
    if budget == "standard":
        return AutoAttack(eps=eps, norm=norm).attacks()
    attacks = AutoAttack(eps=eps, norm=norm, version="standard" if norm == "l1" else "plus").attacks()
    attacks["pgd"] = PGD(eps=eps, norm=norm, steps=100, restarts=10)
    if norm == "l1":
        return attacks | {"ead": EAD()}
    return attacks | {"deepfool": DeepFool(norm=norm), "carlini-wagner": CarliniWagner(norm=norm)}


def _fewest_values(budget: Budget, eps: float, *, randomised: bool) -> dict[str, AbstractAttack]:
    """The attacks of a budget in L0, for which AutoAttack is not defined."""
    if randomised:
        steps, n_queries = (30, 100) if budget == "quick" else (100, 1000)
        return {
            "pgd": PGD(eps=eps, norm="l0", steps=steps, keep="last"),  # an early stop would count lucky draws
            "sparse-rs": SparseRS(eps=eps, n_queries=n_queries),
        }
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
