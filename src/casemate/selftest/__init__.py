"""Self-test of the evaluation on models with a known verdict: deliberately misleading ones, and ordinary ones."""

from casemate.selftest.cases import CASES as CASES
from casemate.selftest.cases import Case as Case
from casemate.selftest.networks import ModelFactory as ModelFactory
from casemate.selftest.networks import Sizes as Sizes
from casemate.selftest.run import Outcome as Outcome
from casemate.selftest.run import choose_cases as choose_cases
from casemate.selftest.run import self_test as self_test
from casemate.selftest.run import self_test_seconds as self_test_seconds
