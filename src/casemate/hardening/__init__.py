"""Hardening of a trained model: a copy is fine-tuned by a defence, beside a control, and all are evaluated in pairs."""

from casemate.hardening.compared import ComparedModel as ComparedModel
from casemate.hardening.compared import FineTuning as FineTuning
from casemate.hardening.defaults import FINE_TUNING as FINE_TUNING
from casemate.hardening.defaults import HARDENING_RECIPES as HARDENING_RECIPES
from casemate.hardening.defaults import following_settings as following_settings
from casemate.hardening.defaults import hardening_recipe as hardening_recipe
from casemate.hardening.plan import HardeningPlan as HardeningPlan
from casemate.hardening.plan import plan_hardening as plan_hardening
from casemate.hardening.result import Hardened as Hardened
from casemate.hardening.run import harden as harden
from casemate.hardening.run import run_hardening as run_hardening
from casemate.hardening.seconds import hardening_seconds as hardening_seconds
from casemate.hardening.weights import network_weights as network_weights
