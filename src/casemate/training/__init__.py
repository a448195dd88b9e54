"""The training loop: schedules, early stopping, moving average of the weights, checkpoints and resume."""

from casemate.training.config import TrainConfig as TrainConfig
from casemate.training.cost import measure_step_cost as measure_step_cost
from casemate.training.cost import training_seconds as training_seconds
from casemate.training.loop import TrainResult as TrainResult
from casemate.training.loop import fit as fit
from casemate.training.objective import CrossEntropy as CrossEntropy
from casemate.training.objective import Objective as Objective
from casemate.training.objective import PreparedObjective as PreparedObjective
from casemate.training.objective import SteppedObjective as SteppedObjective
from casemate.training.objective import TrainingStep as TrainingStep
from casemate.training.objective import labelled_cross_entropy as labelled_cross_entropy
from casemate.training.objective import takes_unlabelled as takes_unlabelled
from casemate.training.precision import faster_precision as faster_precision
from casemate.training.state import Weights as Weights
from casemate.training.state import undone_epochs as undone_epochs
