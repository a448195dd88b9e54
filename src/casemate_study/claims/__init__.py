"""The paper's claims, and for each the rule that judges it by our numbers."""

from casemate_study.claims.judging import Judgement as Judgement
from casemate_study.claims.judging import SeedVerdict as SeedVerdict
from casemate_study.claims.judging import artifacts_by_seed as artifacts_by_seed
from casemate_study.claims.judging import judge as judge
from casemate_study.claims.judging import results_from as results_from
from casemate_study.claims.rules import ClaimEvidence as ClaimEvidence
from casemate_study.claims.sentences import CLAIMS as CLAIMS
from casemate_study.claims.sentences import PaperClaim as PaperClaim
