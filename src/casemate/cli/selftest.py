"""`casemate selftest`: does the evaluation see through models that are known to lie, and leave honest ones alone?"""

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

from tyro.conf import arg

from casemate.cli.observers import watching
from casemate.cli.options import DataDir, Json, Machine, Seed, at_least_one


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """Try the evaluation on models known to lie, and on honest ones.
    - Every liar is first attacked by what it fools, which claims too much; the
      evaluation must then call it weak, broken or not to be trusted. It may
      call no honest model not to be trusted.
    - Small networks are trained for it. Says beforehand what it takes at most.
    - Exits with 0 if all came out as they must, with 1 if one did not.

    Examples:
      casemate selftest
      casemate selftest --only distilled quantised undefended
      casemate selftest --budget standard --json
    """

    only: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: all)")] = ()
    """These models; an unknown name is answered with all there are."""
    budget: Literal["quick", "standard", "thorough"] = "quick"
    """How hard to try, as in `casemate evaluate`."""
    images: Annotated[int, arg(metavar="N")] = 200
    """Judge on N images, equally many of each class."""
    dataset: Annotated[Literal["auto", "fashion-mnist", "digits"], arg(help_behavior_hint="(default: auto)")] = "auto"
    """The images; auto: Fashion-MNIST or, where it cannot be had, scikit-learn's digits."""
    data_dir: DataDir = None
    seed: Seed = 0
    json: Json = False
    machine: Machine = field(default_factory=Machine)

    def run(self) -> None:
        """Train, attack, judge, print. Leaves with 1 if a model did not come out as it must."""
        at_least_one("images", self.images)
        with watching() as observer:
            device, _ = self.machine.set_up(observer)
            from casemate.cli import selftesting

            outcomes = selftesting.run(
                self.only,
                budget=self.budget,
                images=self.images,
                dataset=self.dataset,
                data_dir=self.data_dir,
                device=device,
                seed=self.seed,
                observer=observer,
            )
            show = partial(selftesting.show, outcomes)
        show(as_json=self.json)
        if not all(outcome.as_expected for outcome in outcomes):
            raise SystemExit(1)
