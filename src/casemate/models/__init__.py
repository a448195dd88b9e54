"""What is attacked: the `Classifier` wrapper, the study's networks by name, saving and loading."""

from casemate.models import paper as paper
from casemate.models import residual as residual
from casemate.models.accel.freeze import Frozen as Frozen
from casemate.models.accel.freeze import as_it_is as as_it_is
from casemate.models.accel.freeze import freeze as freeze
from casemate.models.accel.freeze import made_in_inference as made_in_inference
from casemate.models.accel.pass_size import DEFAULT_PASS_SIZE as DEFAULT_PASS_SIZE
from casemate.models.accel.precision import Precision as Precision
from casemate.models.accel.quicken import quickened as quickened
from casemate.models.answers import backward_failed as backward_failed
from casemate.models.checkpoint import ModelMetadata as ModelMetadata
from casemate.models.checkpoint import load as load
from casemate.models.checkpoint import save as save
from casemate.models.classifier import Classifier as Classifier
from casemate.models.layout import channels_last_if_taken as channels_last_if_taken
from casemate.models.registry import create as create
from casemate.models.registry import names as names
from casemate.models.registry import register as register
from casemate.models.state import normal_tensor as normal_tensor
from casemate.models.state import preserve_state as preserve_state
from casemate.models.state import restored_on_error as restored_on_error
from casemate.models.wrappers import mean_over_samples as mean_over_samples
from casemate.models.wrappers import with_fixed_seed as with_fixed_seed
from casemate.models.wrappers import with_network as with_network
