"""What `casemate evaluate` evaluates: the model, the images, the attacks."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, arg

from casemate.cli.shared.options import (
    DataDir,
    DataFile,
    ModelName,
    ModelOptions,
    Reading,
    Seed,
    Subset,
    TestSet,
    parse_number,
)
from casemate.errors import SettingError
from casemate.evaluation import Budget, evaluate
from casemate.evaluation.verdict import CONVENTION, Borders
from casemate.models import Precision
from casemate.norms import Norm

IMAGES = 500
"""Number of images evaluated if it is not given."""
EPS: Mapping[Norm, str] = {"linf": "0.1", "l2": "1", "l1": "10", "l0": "10"}
"""By norm, the eps if none is given: the study's 0.1, and radii of similar effect on images of 28 x 28 pixels."""
_EPS_WORDS = ", ".join(f"{eps} {norm}" for norm, eps in EPS.items())
_BORDERS = f"{CONVENTION.broken:g} {CONVENTION.weak:g} {CONVENTION.robust:g}"
DEFAULTS: dict[str, Any] = {name: each.default for name, each in inspect.signature(evaluate).parameters.items()}
"""The defaults of the arguments of `casemate.evaluate`."""

ImageCount = Annotated[int, arg(metavar="N", help="Use N images, the first ones if --subset does not say otherwise.")]
NormOption = Annotated[Norm, arg(help="The norm in which eps limits the perturbation.")]
Radii = Annotated[
    tuple[str, ...],
    arg(
        metavar="EPS ...",
        help="Radii in pixel units, for pixels in [0, 1]; fractions such as 8/255 are fine. The checks run at the "
        "largest.",
        help_behavior_hint=f"(default: {_EPS_WORDS})",
    ),
]
BUDGET_HELP = (
    "Which attacks to run: quick is a first estimate (PGD, APGD and Square with few steps), autoattack is AutoAttack's "
    "list, standard that and minimum-norm attacks, thorough that and restarts."
)
BudgetOption = Annotated[Budget, arg(help=BUDGET_HELP)]
Thorough = Annotated[
    bool,
    FlagCreatePairsOff,
    arg(help="Run every check, also those that take minutes, whatever the budget.", help_behavior_hint=""),
]
Force = Annotated[
    bool,
    FlagCreatePairsOff,
    arg(
        help="Attack even if a check before the attacks finds that the result will say nothing.", help_behavior_hint=""
    ),
]
PrecisionOption = Annotated[
    Precision,
    arg(
        help="Precision of the gradients of attacks within a ball: bfloat16 is much faster on some processors. Whether "
        "an image fools the model is always decided in float32."
    ),
]
NoImages = Annotated[
    bool,
    FlagCreatePairsOff,
    arg(
        help="Write no images: record and report then hold only their hashes, and no pictures. Otherwise they hold the "
        "clean and the adversarial images.",
        help_behavior_hint="",
    ),
]


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What to evaluate, on which images, and with which attacks and checks."""

    model: ModelName
    dataset: TestSet = None
    data: DataFile = None
    data_dir: DataDir = None
    images: ImageCount = IMAGES
    subset: Subset = None
    norm: NormOption = DEFAULTS["norm"]
    eps: Radii = ()
    budget: BudgetOption = DEFAULTS["budget"]
    thorough: Thorough = False
    force: Force = False
    substitute: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="(default: none)")] = None
    """An undefended model for the same images, for the checks that need one; a file or a function, like MODEL."""
    precision: PrecisionOption = DEFAULTS["precision"]
    seed: Seed = 0
    borders: Annotated[tuple[str, ...], arg(metavar="B W R", help_behavior_hint=f"(default: {_BORDERS})")] = ()
    """Borders between the grades, as shares of the correctly classified images that withstood every attack: broken
    under B, weak under W, partly robust from W, robust as far as tested from R."""

    no_images: NoImages = False
    loading: ModelOptions = field(default_factory=ModelOptions)

    reading: Reading = field(default_factory=Reading)

    def grade_borders(self) -> Borders:
        """The borders between grades: those of --borders, or else the convention. Raises `SettingError`."""
        if not self.borders:
            return CONVENTION
        if len(self.borders) != 3:
            raise SettingError(f"borders {' '.join(self.borders)}; expected three fractions, such as {_BORDERS}")
        broken, weak, robust = (parse_number("borders", text) for text in self.borders)
        return Borders(broken=broken, weak=weak, robust=robust)

    @property
    def radii(self) -> tuple[str, ...]:
        """The values of eps as the user wrote them; if there are none, the default for the norm."""
        return self.eps or (EPS[self.norm],)
