"""The evaluation tried on models of which it is known what it must say: many that lie, and honest ones."""

from casemate.selftest.networks import Sizes as Sizes
from casemate.selftest.networks import Workshop as Workshop
from casemate.selftest.run import Outcome as Outcome
from casemate.selftest.run import choose as choose
from casemate.selftest.run import seconds_at_most as seconds_at_most
from casemate.selftest.run import self_test as self_test
from casemate.selftest.subjects import SUBJECTS as SUBJECTS
from casemate.selftest.subjects import Subject as Subject
