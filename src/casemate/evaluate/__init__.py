"""What judges: clean measures, curves, zero gradients, intervals and paired tests, per-example tables."""

from casemate.evaluate.clean import CleanResult as CleanResult
from casemate.evaluate.clean import evaluate_clean as evaluate_clean
from casemate.evaluate.curves import Curve as Curve
from casemate.evaluate.curves import eps_curve as eps_curve
from casemate.evaluate.curves import steps_curve as steps_curve
from casemate.evaluate.gradients import gradient_alignment as gradient_alignment
from casemate.evaluate.gradients import zero_gradients as zero_gradients
from casemate.evaluate.intervals import Estimate as Estimate
from casemate.evaluate.intervals import mcnemar as mcnemar
from casemate.evaluate.intervals import mean as mean
from casemate.evaluate.intervals import share as share
from casemate.evaluate.targeted import Targeted as Targeted
from casemate.evaluate.targeted import targeted_matrix as targeted_matrix
from casemate.evaluate.worst import WorstCase as WorstCase
from casemate.evaluate.worst import worst_case as worst_case
