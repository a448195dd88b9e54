"""What to compare a model's accuracy under attack with: the undefended network that comes with the package.

Its numbers were measured by `casemate benchmark`, and are stated in its JSON file; nothing is computed here. They are
about Fashion-MNIST in Linf, so a model for other images has nothing beside it.
"""

from dataclasses import dataclass
from typing import final

from casemate.errors import ModelError
from casemate.evaluation.intervals import Estimate
from casemate.files import read_json
from casemate.models.checkpoint import sidecar_of
from casemate.models.pretrained import pretrained_file

UNDEFENDED = "undefended"


@final
@dataclass(frozen=True, kw_only=True)
class UndefendedModel:
    """The measured accuracies of a model that comes with the package, in one norm."""

    name: str
    clean: Estimate
    robust: dict[float, Estimate]
    """By eps, ascending."""
    budget: str

    @property
    def words(self) -> str:
        """Which model it is and how it was measured, as part of a sentence."""
        return f"{self.name}, which comes with casemate (budget {self.budget}, n = {self.clean.n:,})"


def undefended_for(data: str, norm: str, model: str) -> UndefendedModel | None:
    """The undefended network, if `data` and `norm` are those it was measured on and `model` is another."""
    weights = pretrained_file(UNDEFENDED)
    if weights is None:  # the package was installed without it
        return None
    found = read_json(sidecar_of(weights), ModelError)
    if (data, norm) != (found["dataset"], found["metrics"]["norm"]) or model == UNDEFENDED:
        return None
    measured = next(each for each in found["metrics"]["measures"] if len(each["eps"]) > 1)
    return UndefendedModel(
        name=UNDEFENDED,
        clean=Estimate.from_json(measured["clean"]),
        robust=dict(zip(measured["eps"], map(Estimate.from_json, measured["robust"]), strict=True)),
        budget=measured["budget"],
    )
