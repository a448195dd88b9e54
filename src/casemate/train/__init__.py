"""The one training loop, with its schedules, early stopping, moving average, checkpoints and resume."""

from casemate.train.loop import Trained as Trained
from casemate.train.loop import fit as fit
from casemate.train.objective import CrossEntropy as CrossEntropy
from casemate.train.objective import Objective as Objective
from casemate.train.settings import Training as Training
