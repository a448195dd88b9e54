"""What perturbs: the base of all attacks, the one gradient loop, its presets, and sweeps that share work."""

from casemate.attacks.base import Attack as Attack
from casemate.attacks.base import AttackResult as AttackResult
from casemate.attacks.base import Criterion as Criterion
from casemate.attacks.base import MinimumNormAttack as MinimumNormAttack
from casemate.attacks.base import Passes as Passes
from casemate.attacks.base import Status as Status
from casemate.attacks.base import frozen as frozen
from casemate.attacks.base import with_eps as with_eps
from casemate.attacks.gradient import EOT as EOT
from casemate.attacks.gradient import GradientAttack as GradientAttack
from casemate.attacks.gradient import input_gradient as input_gradient
from casemate.attacks.presets import ATTACKS as ATTACKS
from casemate.attacks.presets import BIM as BIM
from casemate.attacks.presets import FGSM as FGSM
from casemate.attacks.presets import MIFGSM as MIFGSM
from casemate.attacks.presets import PGD as PGD
from casemate.attacks.sweep import Sweep as Sweep
from casemate.attacks.sweep import sweep_eps as sweep_eps
from casemate.attacks.sweep import sweep_steps as sweep_steps
