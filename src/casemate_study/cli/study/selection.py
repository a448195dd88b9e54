"""The options that select a study (scale, data set, experiments, seed, store), for `casemate study` and `casemate
report`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from casemate.cli.shared.options import DataDir, Seed, StoreFolder
from casemate_study.experiments.scales import SCALES

_SCALE = PrimitiveConstructorSpec(
    nargs=1,
    metavar=f"{{{','.join(SCALES)}}}",
    instance_from_str=lambda texts: texts[0],
    is_instance=lambda value: value in SCALES,
    str_from_instance=lambda value: [value],
    choices=tuple(SCALES),
)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The options that say which study to compute or to report; equal options find the same artifacts in the store."""

    scale: Annotated[str, _SCALE] = "quick"
    """How much is computed: smoke shows that everything runs, quick is a first look, paper has the paper's sizes."""
    dataset: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: the scale's own)")] = None
    """The images, one of `casemate data list`; auto: Fashion-MNIST, or scikit-learn's digits if it is not available."""
    only: Annotated[tuple[str, ...], arg(metavar="E1 E2 ...", help_behavior_hint="(default: all)")] = ()
    """Only these experiments, and of others the tasks that they need."""
    seed: Seed = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of training steps: auto is that of --pieces, if there are any, else bfloat16 where this machine
    multiplies much faster in it, and was so when the store was first used on it. Attacks use float32."""
    data_dir: DataDir = None
    store: StoreFolder = None
    pieces: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: none)")] = None
    """Artifacts in this folder (without weights, from any commit) count as finished where the store has none; `casemate
    study` adds those that it finishes. The paper's study is in docs/results/paper/pieces of the repository."""

    def default_out(self) -> Path:
        """The folder of the report if --out is not given: runs/study-SCALE."""
        return Path("runs") / f"study-{self.scale}"
