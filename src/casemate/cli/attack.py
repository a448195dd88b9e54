"""`casemate attack`: attack a saved model over a range of eps."""

import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.markup import escape
from tyro.conf import Positional, arg

from casemate.cli import console
from casemate.cli.options import DataDir, DatasetName, Flag, Json, Machine, Seed, at_least_one, check_folder
from casemate.engine.provenance import surroundings
from casemate.errors import ModelError, SettingError
from casemate.progress import Observer

if TYPE_CHECKING:
    from casemate.attacks import GradientAttack
    from casemate.data import LabelledImages
    from casemate.models import Classifier


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The attack's own settings; what is not given is the attack's default."""

    steps: Annotated[int | None, arg(metavar="N", help_behavior_hint="(bim, mifgsm: 10; pgd: 40)")] = None
    """Iterations."""
    step: Annotated[
        str | None, arg(metavar="X", help_behavior_hint="(bim: eps / 4; pgd: 2.5 eps / steps; mifgsm: eps / steps)")
    ] = None
    """Length of each, such as 0.01 or 2/255."""
    clip: Annotated[Literal["ball", "range"] | None, arg(help_behavior_hint="(bim: ball)")] = None
    """ball: stay within eps of the image; range: only within the pixels' bounds."""
    norm: Annotated[Literal["linf", "l2", "l1"] | None, arg(help_behavior_hint="(linf)")] = None
    """Norm in which eps is measured."""
    loss: Annotated[Literal["ce", "torch-ce", "prob-ce", "margin"] | None, arg(help_behavior_hint="(ce)")] = None
    """What is ascended: ce is accurate, torch-ce and prob-ce can vanish."""
    restarts: Annotated[int | None, arg(metavar="N", help_behavior_hint="(pgd: 1)")] = None
    """Runs from fresh random starts."""
    decay: Annotated[float | None, arg(metavar="X", help_behavior_hint="(mifgsm: 1)")] = None
    """Decay of the accumulated gradient."""

    def attack(self, name: str, eps: str) -> "GradientAttack":
        """The attack meant. Raises `SettingError` naming the options it has if it is given another's."""
        from casemate.attacks import ATTACKS
        from casemate.norms import parse_eps

        kind = ATTACKS[name]
        given = {option: value for option, value in asdict(self).items() if value is not None}
        known = {each.name for each in fields(kind)}
        foreign = [f"--{option}" for option in given if option not in known]
        if foreign:
            own = ", ".join(f"--{each.name}" for each in fields(self) if each.name in known)
            raise SettingError(f"{name} has no {', '.join(foreign)}; it has {own}")
        if "step" in given:
            given["step"] = parse_eps(given["step"])
        attack = kind(eps=parse_eps(eps), **given)  # type: ignore[call-arg]  # every preset has the field eps
        attack.loop()  # raises what is wrong with the settings before anything is loaded
        return attack


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Attack a saved model and tell the accuracy that is left.
    - Worst: an image is lost if any iterate at this or a smaller eps fools the
      model. Last: only the last iterate counts, as in other tools.

    Examples:
      casemate attack model.safetensors --attack fgsm --eps 0.01 0.05 0.1
      casemate attack model.safetensors --attack pgd --eps 8/255 --restarts 5
      casemate attack model.safetensors --eps 0.1 --target Shirt --out shirts
    """

    model: Positional[Path]
    """A .safetensors file written by casemate, with its JSON file beside it."""
    attack: Literal["fgsm", "bim", "pgd", "mifgsm"] = "pgd"
    """The attack."""
    eps: Annotated[tuple[str, ...], arg(metavar="EPS ...")] = ("0.01", "0.025", "0.05", "0.1")
    """Radii in units of pixels within [0, 1]; fractions such as 8/255 are fine."""
    target: Annotated[str | None, arg(metavar="CLASS", help_behavior_hint="(default: any wrong class)")] = None
    """Class, by name or number, that the images not of it are to be taken for."""
    images: Annotated[int, arg(metavar="N")] = 1000
    """Attack the first N test images."""
    dataset: Annotated[DatasetName | None, arg(help_behavior_hint="(default: the one the model was trained on)")] = None
    """The images."""
    data_dir: DataDir = None
    seed: Seed = 0
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: nothing is written)")] = None
    """Write result.json, examples.parquet and adversarial.safetensors here."""
    dry_run: Flag = False
    """Attack nothing: say what would be attacked, at what cost."""
    json: Json = False
    settings: Settings = field(default_factory=Settings)
    machine: Machine = field(default_factory=Machine)

    def run(self) -> None:
        """Attack, print, write."""
        at_least_one("images", self.images)
        if self.out is not None and not self.dry_run:
            check_folder(self.out)
        with console.observer() as observer:
            device, threads = self.machine.set_up(observer)
            attacks = self._attacks()
            model, test, name = self._load(device, observer)
            about: dict[str, Any] = {
                "model": str(self.model),
                "dataset": name,
                "images": len(test),
                "attack": next(iter(attacks.values())).record(),
                "eps": list(attacks),
                "target": None,
                "seed": self.seed,
                "device": device,
            }
            target = None if self.target is None else self._target(model)
            if target is not None:
                test = test[test.labels != target]
                if not len(test):
                    raise SettingError(f"all of the images are of class {model.classes[target]}; take more --images")
                about |= {"images": len(test), "target": model.classes[target]}
            if self.dry_run:
                self._estimate(about, attacks)
                return
            from casemate.cli import attacking

            start = time.perf_counter()
            keep = self.out is not None
            if target is None:
                found = attacking.sweep(model, test, list(attacks.values()), self.seed, keep, observer)
            else:
                found = attacking.reach(model, test, target, list(attacks.values()), self.seed, keep, observer)
            about |= {"points": found.points, "passes": asdict(found.passes), "seconds": time.perf_counter() - start}
            if self.out is not None:
                attacking.write(self.out, found, about, surroundings(device, threads))
        if self.json:
            console.show_json(about)
            return
        title = f"{self.attack} on {self.model.name} ({name}, first {self.images:,} test images, seed {self.seed})"
        console.show(attacking.render(found, list(attacks), title), *attacking.notes(about))
        if self.out is not None:
            console.show(f"Written: result.json, examples.parquet, adversarial.safetensors in {escape(str(self.out))}")

    def _attacks(self) -> "dict[str, GradientAttack]":
        """The attack at each eps, by the text of the eps, ascending."""
        if not self.eps:
            raise SettingError("no eps; give at least one, such as --eps 8/255")
        made = {text: self.settings.attack(self.attack, text) for text in self.eps}
        ascending = sorted(made.items(), key=lambda pair: pair[1].eps)  # type: ignore[attr-defined]
        return dict({attack.eps: (text, attack) for text, attack in ascending}.values())  # type: ignore[attr-defined]

    def _load(self, device: str, observer: Observer) -> "tuple[Classifier, LabelledImages, str]":
        """The model on its device, the images, and the data set's name."""
        import torch

        from casemate import data
        from casemate.models import load

        model, description = load(self.model)
        name = self.dataset or description.dataset
        if name not in data.NAMES:
            raise SettingError(
                f"the model was trained on {name!r}; say with --dataset which of {', '.join(data.NAMES)}"
            )
        with observer.work("Reading the images", 0):
            dataset = data.load(name, self.data_dir, observer=observer)
        if dataset.classes != model.classes:
            raise ModelError(
                f"{self.model} tells {', '.join(model.classes[:3])}, ... apart, but {dataset.title} has the classes "
                f"{', '.join(dataset.classes[:3])}, ...; choose the data set it was trained on"
            )
        model.to(device)
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # its stubs want more
        return model, dataset.test[: self.images], dataset.name

    def _target(self, model: "Classifier") -> int:
        """The class to reach."""
        text = self.target or ""
        lowered = [name.lower() for name in model.classes]
        if text.lower() in lowered:
            return lowered.index(text.lower())
        if text.isdecimal() and int(text) < len(model.classes):
            return int(text)
        raise SettingError(
            f"target {text!r}; expected a number from 0 to {len(model.classes) - 1} or one of "
            f"{', '.join(model.classes)}"
        )

    def _estimate(self, about: dict[str, Any], attacks: "dict[str, GradientAttack]") -> None:
        loops = [attack.loop() for attack in attacks.values()]
        gradients = about["images"] * sum(loop.steps * loop.restarts for loop in loops)
        if self.json:
            console.show_json(about | {"gradients": gradients})
            return
        made = console.table("Setting", "Value", title="Would be attacked")
        for name, value in about.items():
            text = ", ".join(value) if isinstance(value, list) else str(value)
            if isinstance(value, dict):
                text = ", ".join(f"{key} {setting}" for key, setting in value.items() if key != "eps")
            made.add_row(name, escape(text))
        made.add_row("gradients", f"at most {gradients:,}")
        console.show(made)
