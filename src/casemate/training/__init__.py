"""The one training loop, with its schedules, early stopping, moving average, checkpoints and resume."""

from casemate.training.config import Training as Training
from casemate.training.loop import Trained as Trained
from casemate.training.loop import fit as fit
from casemate.training.objective import CrossEntropy as CrossEntropy
from casemate.training.objective import Objective as Objective
