"""Defences, one module each: a defence changes the training images, the objective or the model, and nothing else."""

from casemate.defenses.adversarial_regularization import AdversarialRegularization as AdversarialRegularization
from casemate.defenses.adversarial_training import AdversarialTraining as AdversarialTraining
from casemate.defenses.distillation import Distillation as Distillation
from casemate.defenses.distillation import TemperatureCrossEntropy as TemperatureCrossEntropy
from casemate.defenses.distillation import at_temperature as at_temperature
from casemate.defenses.mart import MART as MART
from casemate.defenses.randomized import StochasticAffine as StochasticAffine
from casemate.defenses.randomized import preprocessed as preprocessed
from casemate.defenses.randomized import with_noise as with_noise
from casemate.defenses.recipe import Recipe as Recipe
from casemate.defenses.registry import RECIPES as RECIPES
from casemate.defenses.registry import make_objective as make_objective
from casemate.defenses.registry import recipe_type as recipe_type
from casemate.defenses.robust_distillation import RobustDistillation as RobustDistillation
from casemate.defenses.several_norms import SeveralNorms as SeveralNorms
from casemate.defenses.single_step import FGSMRS as FGSMRS
from casemate.defenses.single_step import NFGSM as NFGSM
from casemate.defenses.trades import TRADES as TRADES
