"""AutoAttack (Croce and Hein 2020, arXiv 2003.01690): a fixed list of attacks, each on the survivors of those before.

Versions and parameters are those of the original code (github.com/fra31/auto-attack, commit a392200): `standard` and
`plus` for Linf, L2 and L1, `rand` for models with random outputs. There are three differences: APGD's cross-entropy is
the stable form unless `loss` is set, an example is not attacked any further once it is fooled, and random draws are
per example.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

import torch
from torch import Tensor

from casemate.attacks._worst_case import run_on_survivors
from casemate.attacks.apgd import APGD, TargetedAPGD
from casemate.attacks.base import AbstractAttack, stream_key
from casemate.attacks.criterion import Criterion
from casemate.attacks.fab import FAB, TargetedFAB
from casemate.attacks.result import Passes, RunResult
from casemate.attacks.square import Square
from casemate.attacks.verify import Verified
from casemate.errors import SettingError
from casemate.losses import AnyLoss
from casemate.models import Classifier
from casemate.norms import ConvexNorm, Eps
from casemate.progress import Advance
from casemate.rng import Streams, derive
from casemate.settings import expect, one_of
from casemate.types import Flags, Images

Version = Literal["standard", "plus", "rand"]

_EOT_SAMPLES = 20
"""Passes whose gradients are averaged in version `rand` (the original's eot_iter)."""


@final
@dataclass(frozen=True, kw_only=True)
class AutoAttack(AbstractAttack):
    """The standard sequence of attacks for reporting robust accuracy."""

    stream: ClassVar[str] = "AutoAttack"
    targetable: ClassVar[bool] = False
    without_classes: ClassVar[str] = "APGD, FAB and Square"
    supports_low_precision: ClassVar[bool] = False  # FAB does not; `run_cascade` runs each attack on its own

    eps: Eps
    """Radius of the ball, in pixel units."""
    norm: ConvexNorm = "linf"
    """Norm of the ball: Linf, L2 or L1."""
    version: Annotated[Version, one_of("standard", "plus", "rand")] = "standard"
    """`standard`: APGD-CE, APGD-T, FAB-T, Square. `plus`: more restarts, and also APGD-DLR and FAB (Linf and L2 only).
    `rand`: APGD-CE and APGD-DLR with gradients averaged over 20 passes."""
    loss: AnyLoss = "ce"
    """Loss of APGD-CE: `ce` keeps its gradient however confident the model is, `torch-ce` is PyTorch's cross-entropy,
    which the original code maximises; or a function (see `OwnLoss`)."""

    def __post_init__(self) -> None:
        expect(self)
        self.attacks()

    def attacks(self) -> dict[str, AbstractAttack]:
        """The attacks of the version by name, in the order in which they run. `SettingError` for `plus` with L1."""
        eps, norm = self.eps, self.norm
        if self.version == "rand":
            return {
                "apgd-ce": APGD(eps=eps, norm=norm, loss=self.loss, eot_samples=_EOT_SAMPLES),
                "apgd-dlr": APGD(eps=eps, norm=norm, loss="dlr", eot_samples=_EOT_SAMPLES),
            }
        square = Square(eps=eps, norm=norm, n_queries=5001)  # the original does not count the query of the start
        fab_t = TargetedFAB(norm=norm, restart_eps=eps, stop_at_distance=eps)
        if self.version == "plus":
            if norm == "l1":
                raise SettingError("version plus is defined for linf and l2; expected version standard for l1")
            return {
                "apgd-ce": APGD(eps=eps, norm=norm, loss=self.loss, restarts=5),
                "apgd-dlr": APGD(eps=eps, norm=norm, loss="dlr", restarts=5),
                "fab": FAB(norm=norm, restarts=5, restart_eps=eps, stop_at_distance=eps),
                "square": square,
                "apgd-t": TargetedAPGD(eps=eps, norm=norm),
                "fab-t": fab_t,
            }
        if norm == "l1":  # Croce and Hein 2021, arXiv 2103.01208
            return {
                "apgd-ce": APGD(eps=eps, norm=norm, loss=self.loss, restarts=5, use_larger_eps=True),
                "apgd-t": TargetedAPGD(eps=eps, norm=norm, classes=5, use_larger_eps=True),
                "fab-t": fab_t,
                "square": square,
            }
        return {
            "apgd-ce": APGD(eps=eps, norm=norm, loss=self.loss),
            "apgd-t": TargetedAPGD(eps=eps, norm=norm),
            "fab-t": fab_t,
            "square": square,
        }

    def max_passes(self, classes: int) -> Passes:
        """Per image at most: the passes of all attacks, and a forward pass to verify the candidates of each."""
        total = Passes()
        for attack in self.attacks().values():
            total.add(attack.max_passes(classes) or Passes())
            total.forward += 1
        return total

    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Run each attack on the examples that no attack before it fooled."""

        def keep(at: Tensor, part: Criterion, found: Verified) -> tuple[Flags, Flags]:
            del at
            return torch.ones_like(found.finite), part.is_adversarial(found.logits)

        runs = [(attack, derive(streams.seed, stream_key(attack))) for attack in self.attacks().values()]
        return run_on_survivors(runs, self.ball(), model, clean, criterion, streams.index, keep, advance)
