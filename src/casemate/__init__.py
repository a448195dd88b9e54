"""casemate: train image classifiers, attack them, defend them, and say how far the result can be trusted.

The names below are loaded when they are first used, so that `import casemate` is quick and imports no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "casemate.attacks": (
        "APGD",
        "BIM",
        "BPDA",
        "EAD",
        "EOT",
        "FAB",
        "FGSM",
        "LBFGS",
        "MIFGSM",
        "PGD",
        "AttackResult",
        "AutoAttack",
        "CarliniWagner",
        "CornerNoise",
        "DeepFool",
        "HopSkipJump",
        "Restarts",
        "Spatial",
        "Square",
        "Status",
        "TargetedAPGD",
        "TargetedFAB",
        "Transfer",
        "UniformNoise",
        "sweep_eps",
        "sweep_steps",
    ),
    "casemate.data": ("Dataset", "LabelledImages", "read_images", "split", "subset", "to_float"),
    "casemate.defenses": (
        "AdversarialRegularization",
        "AdversarialTraining",
        "TemperatureCrossEntropy",
        "Distillation",
        "Recipe",
        "StochasticAffine",
    ),
    "casemate.errors": ("CasemateError", "CasemateWarning"),
    "casemate.evaluation": (
        "Evaluation",
        "Finding",
        "Severity",
        "Verdict",
        "eps_curve",
        "evaluate_clean",
        "gradient_alignment",
        "make_record",
        "mcnemar",
        "read_record",
        "steps_curve",
        "targeted_matrix",
        "verify_record",
        "worst_case",
        "write_record",
        "zero_gradients",
    ),
    "casemate.models": ("Classifier", "ModelMetadata", "create", "register"),
    "casemate.norms": ("Ball", "parse_eps"),
    "casemate.training": ("CrossEntropy", "TrainConfig", "fit"),
}
_RENAMED = {
    "evaluate_model": ("casemate.evaluation", "evaluate"),  # `casemate.evaluation` is the package
    "load_data": ("casemate.data", "load"),
    "load_model": ("casemate.models", "load"),
    "save_model": ("casemate.models", "save"),
}
_WHERE = {name: (home, name) for home, names in _HOMES.items() for name in names} | _RENAMED

if TYPE_CHECKING:
    from casemate.attacks import APGD as APGD
    from casemate.attacks import BIM as BIM
    from casemate.attacks import BPDA as BPDA
    from casemate.attacks import EAD as EAD
    from casemate.attacks import EOT as EOT
    from casemate.attacks import FAB as FAB
    from casemate.attacks import FGSM as FGSM
    from casemate.attacks import LBFGS as LBFGS
    from casemate.attacks import MIFGSM as MIFGSM
    from casemate.attacks import PGD as PGD
    from casemate.attacks import AttackResult as AttackResult
    from casemate.attacks import AutoAttack as AutoAttack
    from casemate.attacks import CarliniWagner as CarliniWagner
    from casemate.attacks import CornerNoise as CornerNoise
    from casemate.attacks import DeepFool as DeepFool
    from casemate.attacks import HopSkipJump as HopSkipJump
    from casemate.attacks import Restarts as Restarts
    from casemate.attacks import Spatial as Spatial
    from casemate.attacks import Square as Square
    from casemate.attacks import Status as Status
    from casemate.attacks import TargetedAPGD as TargetedAPGD
    from casemate.attacks import TargetedFAB as TargetedFAB
    from casemate.attacks import Transfer as Transfer
    from casemate.attacks import UniformNoise as UniformNoise
    from casemate.attacks import sweep_eps as sweep_eps
    from casemate.attacks import sweep_steps as sweep_steps
    from casemate.data import Dataset as Dataset
    from casemate.data import LabelledImages as LabelledImages
    from casemate.data import load as load_data
    from casemate.data import read_images as read_images
    from casemate.data import split as split
    from casemate.data import subset as subset
    from casemate.data import to_float as to_float
    from casemate.defenses import AdversarialRegularization as AdversarialRegularization
    from casemate.defenses import AdversarialTraining as AdversarialTraining
    from casemate.defenses import Distillation as Distillation
    from casemate.defenses import Recipe as Recipe
    from casemate.defenses import StochasticAffine as StochasticAffine
    from casemate.defenses import TemperatureCrossEntropy as TemperatureCrossEntropy
    from casemate.errors import CasemateError as CasemateError
    from casemate.errors import CasemateWarning as CasemateWarning
    from casemate.evaluation import Evaluation as Evaluation
    from casemate.evaluation import Finding as Finding
    from casemate.evaluation import Severity as Severity
    from casemate.evaluation import Verdict as Verdict
    from casemate.evaluation import eps_curve as eps_curve
    from casemate.evaluation import evaluate as evaluate_model
    from casemate.evaluation import evaluate_clean as evaluate_clean
    from casemate.evaluation import gradient_alignment as gradient_alignment
    from casemate.evaluation import make_record as make_record
    from casemate.evaluation import mcnemar as mcnemar
    from casemate.evaluation import read_record as read_record
    from casemate.evaluation import steps_curve as steps_curve
    from casemate.evaluation import targeted_matrix as targeted_matrix
    from casemate.evaluation import verify_record as verify_record
    from casemate.evaluation import worst_case as worst_case
    from casemate.evaluation import write_record as write_record
    from casemate.evaluation import zero_gradients as zero_gradients
    from casemate.models import Classifier as Classifier
    from casemate.models import ModelMetadata as ModelMetadata
    from casemate.models import create as create
    from casemate.models import load as load_model
    from casemate.models import register as register
    from casemate.models import save as save_model
    from casemate.norms import Ball as Ball
    from casemate.norms import parse_eps as parse_eps
    from casemate.training import CrossEntropy as CrossEntropy
    from casemate.training import TrainConfig as TrainConfig
    from casemate.training import fit as fit

__all__ = [
    "APGD",
    "BIM",
    "BPDA",
    "EAD",
    "EOT",
    "FAB",
    "FGSM",
    "LBFGS",
    "MIFGSM",
    "PGD",
    "AdversarialRegularization",
    "AdversarialTraining",
    "AttackResult",
    "AutoAttack",
    "Ball",
    "CarliniWagner",
    "CasemateError",
    "CasemateWarning",
    "Classifier",
    "CornerNoise",
    "CrossEntropy",
    "Dataset",
    "DeepFool",
    "Distillation",
    "Evaluation",
    "Finding",
    "HopSkipJump",
    "LabelledImages",
    "ModelMetadata",
    "Recipe",
    "Restarts",
    "Severity",
    "Spatial",
    "Square",
    "Status",
    "StochasticAffine",
    "TargetedAPGD",
    "TargetedFAB",
    "TemperatureCrossEntropy",
    "TrainConfig",
    "Transfer",
    "UniformNoise",
    "Verdict",
    "create",
    "eps_curve",
    "evaluate_clean",
    "evaluate_model",
    "fit",
    "gradient_alignment",
    "load_data",
    "load_model",
    "make_record",
    "mcnemar",
    "parse_eps",
    "read_images",
    "read_record",
    "register",
    "save_model",
    "split",
    "steps_curve",
    "subset",
    "sweep_eps",
    "sweep_steps",
    "targeted_matrix",
    "to_float",
    "verify_record",
    "worst_case",
    "write_record",
    "zero_gradients",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its home."""
    if name not in _WHERE:
        raise AttributeError(f"module 'casemate' has no attribute {name!r}")
    home, original = _WHERE[name]
    return getattr(import_module(home), original)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
