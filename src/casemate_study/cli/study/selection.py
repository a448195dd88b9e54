"""Which study is meant: what `casemate study` computes, and `casemate report` reports."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

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
    """Which study is meant; the same options name the same finished artifacts."""

    scale: Annotated[str, _SCALE] = "quick"
    """How much is computed: smoke shows that everything runs, quick is a first look, full has the paper's sizes."""
    dataset: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: the scale's own)")] = None
    """The images, one of `casemate data list`; auto: Fashion-MNIST, or where it cannot be had scikit-learn's digits."""
    only: Annotated[tuple[str, ...], arg(metavar="E1 E2 ...", help_behavior_hint="(default: all)")] = ()
    """These experiments, and what they need."""
    seed: Seed = 0
    data_dir: DataDir = None
    store: StoreFolder = None

    def default_out(self) -> Path:
        """The folder of the report if none is named."""
        return Path("runs") / f"study-{self.scale}"
