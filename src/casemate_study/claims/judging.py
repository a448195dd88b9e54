"""Judges every claim of the paper, by this run and by trainings of the same models with further seeds."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from casemate.engine import Artifact
from casemate_study.claims.rules import ClaimEvidence, ClaimVerdict
from casemate_study.claims.sentences import CLAIMS, PaperClaim
from casemate_study.results.models import ModelResults
from casemate_study.results.stored import Artifacts

_SEED = re.compile(r"seed-(\d+)/(.+)")
"""The name of a task that trains or measures a model with a further seed, such as "seed-1/E6/clean"."""


def artifacts_by_seed(artifacts: Artifacts) -> dict[int, Artifacts]:
    """The artifacts of models that were trained with further seeds, by seed, each under its name without the seed.

    Artifacts of this run's own seed, whose names have no such prefix, are omitted.
    """
    found: dict[int, dict[str, Artifact]] = {}
    for name, artifact in artifacts.items():
        parts = _SEED.fullmatch(name)
        if parts is not None:
            found.setdefault(int(parts[1]), {})[parts[2]] = artifact
    return {seed: found[seed] for seed in sorted(found)}


def results_from(models: Mapping[str, ModelResults], artifacts: Artifacts) -> dict[str, ModelResults]:
    """The same models with results from other artifacts; models without clean measures there are omitted."""
    found = {name: ModelResults(each.model, artifacts) for name, each in models.items()}
    return {name: each for name, each in found.items() if each.clean is not None}


@final
@dataclass(frozen=True, kw_only=True)
class SeedVerdict:
    """The verdict of one rule with a further seed, and its verdict with this run's seed on the same measures."""

    verdict: ClaimVerdict
    here: ClaimVerdict
    """The verdict from those artifacts of this run that the further seed has too; it has fewer models and curves."""


@final
@dataclass(frozen=True)
class Judgement:
    """A claim of the paper with our verdict on it at the scale of this run, and in `because` the numbers behind it."""

    claim: PaperClaim
    found: ClaimVerdict
    """The verdict that the numbers alone give."""
    because: str
    by_seed: Mapping[int, SeedVerdict] = field(default_factory=dict[int, SeedVerdict])
    """The verdicts with further seeds; seeds with too few artifacts for one are omitted."""
    decides: bool = True
    """Whether the scale and the data can decide about the paper's claim."""

    @property
    def verdict(self) -> str:
        """Our verdict; that it cannot be decided, with what was found, where scale or data cannot decide."""
        if self.decides or self.found == "not measured":
            return self.found
        return f"cannot be decided at this scale (here: {self.found})"

    @property
    def survives(self) -> bool | None:
        """Whether every further seed gives the verdict that this run gives on the same measures; None without any."""
        return all(each.verdict == each.here for each in self.by_seed.values()) if self.by_seed else None

    @property
    def seeds_sentence(self) -> str:
        """The verdicts with further seeds, and whether they agree, as text; empty without any."""
        if not self.by_seed:
            return ""
        alike: dict[SeedVerdict, list[str]] = {}
        for seed, each in self.by_seed.items():
            alike.setdefault(each, []).append(str(seed))
        words = [
            f"with seed{'s' * (len(seeds) > 1)} {' and '.join(seeds)}: {each.verdict}"
            + ("" if each.here in self.verdict else f" (this run on the same measures: {each.here})")
            for each, seeds in alike.items()
        ]
        end = "The verdict survives all seeds." if self.survives else "The verdict does not survive all seeds."
        return f"{'; '.join(words)}. {end}"


def judge(evidence: ClaimEvidence, *, decides: bool) -> list[Judgement]:
    """Judge every claim of the paper by our results, in the order of `CLAIMS`; each also by every further seed.

    `decides` says whether the scale and the data can decide. If not, the verdict is "cannot be decided at this scale",
    followed by the one that the numbers alone would give ("not measured" stays).
    """
    seeds: dict[int, tuple[ClaimEvidence, ClaimEvidence]] = {}
    for seed, theirs in artifacts_by_seed(evidence.artifacts).items():
        same = {name: each for name, each in evidence.artifacts.items() if name in theirs}
        there, here = (ClaimEvidence(results_from(evidence.models, each), each) for each in (theirs, same))
        seeds[seed] = there, here
    found = []
    for claim in CLAIMS:
        result = claim.judge(evidence)
        by_seed: dict[int, SeedVerdict] = {}
        for seed, (there, here) in seeds.items():
            repeated = claim.judge(there).verdict
            if repeated != "not measured":
                by_seed[seed] = SeedVerdict(verdict=repeated, here=claim.judge(here).verdict)
        found.append(Judgement(claim, result.verdict, result.because, by_seed, decides))
    return found
