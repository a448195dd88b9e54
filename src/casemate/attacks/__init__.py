"""Attacks: their base, the gradient loop and its presets, and one module for every other attack."""

from casemate.attacks.apgd import APGD as APGD
from casemate.attacks.apgd import TargetedAPGD as TargetedAPGD
from casemate.attacks.autoattack import AutoAttack as AutoAttack
from casemate.attacks.base import AbstractAttack as AbstractAttack
from casemate.attacks.base import AbstractMinimumNormAttack as AbstractMinimumNormAttack
from casemate.attacks.base import as_attack as as_attack
from casemate.attacks.base import as_images as as_images
from casemate.attacks.base import check_images as check_images
from casemate.attacks.base import innermost as innermost
from casemate.attacks.base import is_unlimited as is_unlimited
from casemate.attacks.base import with_eps as with_eps
from casemate.attacks.bpda import BPDA as BPDA
from casemate.attacks.carlini_wagner import CarliniWagner as CarliniWagner
from casemate.attacks.criterion import Criterion as Criterion
from casemate.attacks.deepfool import DeepFool as DeepFool
from casemate.attacks.ead import EAD as EAD
from casemate.attacks.fab import FAB as FAB
from casemate.attacks.fab import TargetedFAB as TargetedFAB
from casemate.attacks.gradient import EOT as EOT
from casemate.attacks.gradient import AbstractGradientAttack as AbstractGradientAttack
from casemate.attacks.gradient import input_gradient as input_gradient
from casemate.attacks.hopskipjump import HopSkipJump as HopSkipJump
from casemate.attacks.lbfgs import LBFGS as LBFGS
from casemate.attacks.noise import CornerNoise as CornerNoise
from casemate.attacks.noise import UniformNoise as UniformNoise
from casemate.attacks.prepare import COMPARED_IMAGES as COMPARED_IMAGES
from casemate.attacks.prepare import frozen as frozen
from casemate.attacks.prepare import group_size as group_size
from casemate.attacks.prepare import prepare_for_attack as prepare_for_attack
from casemate.attacks.presets import BIM as BIM
from casemate.attacks.presets import FGSM as FGSM
from casemate.attacks.presets import MIFGSM as MIFGSM
from casemate.attacks.presets import PGD as PGD
from casemate.attacks.presets import PRESETS as PRESETS
from casemate.attacks.restarts import Restarts as Restarts
from casemate.attacks.result import AttackResult as AttackResult
from casemate.attacks.result import Passes as Passes
from casemate.attacks.result import RunResult as RunResult
from casemate.attacks.result import Status as Status
from casemate.attacks.spatial import Spatial as Spatial
from casemate.attacks.spsa import SPSA as SPSA
from casemate.attacks.square import Square as Square
from casemate.attacks.surfree import SurFree as SurFree
from casemate.attacks.sweep import Sweep as Sweep
from casemate.attacks.sweep import sweep_eps as sweep_eps
from casemate.attacks.sweep import sweep_steps as sweep_steps
from casemate.attacks.transfer import Transfer as Transfer
from casemate.models import model_of as model_of

Attack = AbstractAttack
"""The base of all attacks, by the name that attacks of other packages derive from."""
