"""The evaluation tried on models of which it is known what it must say: many that lie, and honest ones."""

from casemate.selftest.cases import CASES as CASES
from casemate.selftest.cases import Case as Case
from casemate.selftest.networks import ModelFactory as ModelFactory
from casemate.selftest.networks import Sizes as Sizes
from casemate.selftest.run import Outcome as Outcome
from casemate.selftest.run import choose as choose
from casemate.selftest.run import seconds_at_most as seconds_at_most
from casemate.selftest.run import self_test as self_test
