"""What `casemate harden` hardens: the model, against which attacks, on which images."""

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from casemate.cli.evaluate.request import BudgetOption
from casemate.cli.shared.options import DataDir, DataFile, Flag, ModelName, ModelOptions, Seed, Unlabelled
from casemate.hardening import HARDENING_RECIPES, harden
from casemate.norms import Norm

_DEFAULTS: dict[str, Any] = {name: each.default for name, each in inspect.signature(harden).parameters.items()}
_RECIPE = arg(
    metavar="NAME ...",
    help=f"One or more of {', '.join(HARDENING_RECIPES)}; each makes a hardened model. Settings of a recipe follow a "
    "colon: trades:beta=3,weight_perturbation=0.005.",
    help_behavior_hint=f"(default: {_DEFAULTS['recipe']})",
)


@dataclass(frozen=True, kw_only=True)
class HardenRequest:
    """What to harden, against which perturbations, and how it is evaluated."""

    model: ModelName
    eps: Annotated[str, arg(metavar="EPS")]
    """The radius to harden against, in pixel units, for pixels in [0, 1]; fractions such as 8/255 are fine."""
    norm: Norm = _DEFAULTS["norm"]
    """The norm in which eps limits the perturbation."""
    recipe: Annotated[tuple[str, ...], _RECIPE] = (_DEFAULTS["recipe"],)
    steps: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the recipe's)")] = None
    """Gradient steps of the recipe's attack, where it has some; fewer are faster, and may harden less."""
    teacher: Annotated[str | None, arg(metavar="MODEL")] = None
    """The robust model that robust-distillation learns from: any model that MODEL can be."""
    budget: BudgetOption = _DEFAULTS["budget"]
    no_images: Flag = False
    """Show no test images in the report."""
    seed: Seed = 0
    loading: ModelOptions = field(default_factory=ModelOptions)


@dataclass(frozen=True, kw_only=True)
class HardenImages:
    """The images to train on, to choose the epoch by, and to test on."""

    dataset: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: the model's)")] = None
    """Training and test images of this data set, one of `casemate data list`."""
    data: DataFile = None
    test: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="(default: DATA's, or a fifth of it)")] = None
    """Your own test images, as --data takes them; best images that the model was not trained on."""
    unlabelled: Unlabelled = None
    data_dir: DataDir = None
    train_images: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Use a stratified random sample of N images for training and validation."""
    images: Annotated[int, arg(metavar="N")] = 500
    """Test on a stratified random sample of N images."""
