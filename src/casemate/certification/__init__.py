"""Certification: bounds of a network's outputs over a ball, and what they prove."""

from casemate.certification.certificate import Certificate as Certificate
from casemate.certification.certificate import Method as Method
from casemate.certification.certificate import certify as certify
from casemate.certification.operations import Interval as Interval
from casemate.certification.propagation import LayerBounds as LayerBounds
from casemate.certification.propagation import OperationGraph as OperationGraph
from casemate.certification.propagation import bound_layers as bound_layers
from casemate.certification.propagation import interval_margins as interval_margins
from casemate.certification.propagation import linear_margins as linear_margins
from casemate.certification.propagation import worst_logits as worst_logits
from casemate.certification.region import Region as Region
from casemate.certification.region import region_around as region_around
from casemate.certification.smoothing import SmoothedCertificate as SmoothedCertificate
from casemate.certification.smoothing import Smoothing as Smoothing
from casemate.certification.smoothing import certify_smoothed as certify_smoothed
from casemate.certification.smoothing import predict_smoothed as predict_smoothed
from casemate.certification.smoothing import smoothed as smoothed
from casemate.certification.taking_apart import TakenApart as TakenApart
from casemate.certification.taking_apart import take_apart as take_apart
