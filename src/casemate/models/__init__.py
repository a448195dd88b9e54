"""Models: the `Classifier`, networks by name, saving and loading, and optimised copies for attacks."""

from casemate.models import paper as paper
from casemate.models import residual as residual
from casemate.models.accel.freeze import Frozen as Frozen
from casemate.models.accel.freeze import freeze as freeze
from casemate.models.accel.freeze import freeze_unoptimized as freeze_unoptimized
from casemate.models.accel.freeze import has_inference_tensors as has_inference_tensors
from casemate.models.accel.optimized_training import optimized_training as optimized_training
from casemate.models.accel.pass_size import DEFAULT_PASS_SIZE as DEFAULT_PASS_SIZE
from casemate.models.accel.precision import Precision as Precision
from casemate.models.channels_last import channels_last_if_supported as channels_last_if_supported
from casemate.models.checkpoint import ModelMetadata as ModelMetadata
from casemate.models.checkpoint import load as load
from casemate.models.checkpoint import save as save
from casemate.models.classifier import Classifier as Classifier
from casemate.models.output_errors import backward_error as backward_error
from casemate.models.registry import create as create
from casemate.models.registry import names as names
from casemate.models.registry import register as register
from casemate.models.state import normal_tensor as normal_tensor
from casemate.models.state import preserve_state as preserve_state
from casemate.models.state import restore_on_error as restore_on_error
from casemate.models.user_call import UserCall as UserCall
from casemate.models.user_call import user_call as user_call
from casemate.models.wrappers import mean_over_samples as mean_over_samples
from casemate.models.wrappers import with_fixed_seed as with_fixed_seed
from casemate.models.wrappers import with_network as with_network
