"""The options of `casemate attack`, and how it runs: the options of one attack are the fields of its class."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

from tyro.conf import Suppress, arg

from casemate.attacks import EOT, PARTS, AbstractAttack, AbstractMinimumNormAttack, Restarts, Transferable
from casemate.attacks.registry import attack_type, attack_types, paper_of, summary_of
from casemate.cli import attack as command
from casemate.cli.shared import outputs, parsing
from casemate.cli.shared.dataclass_options import chosen_settings, field_help, options_of, python_only
from casemate.cli.shared.observers import watching
from casemate.cli.shared.options import (
    MODEL_FROM,
    DataDir,
    DataFile,
    Flag,
    Json,
    Machine,
    ModelName,
    ModelOptions,
    Reading,
    Seed,
    Subset,
    TestSet,
    at_least_one,
    check_folder,
)
from casemate.cli.shared.outputs import Overwrite
from casemate.cli.shared.tracking import Track, check_trackers, tracking
from casemate.errors import SettingError
from casemate.norms import Norm

_EPS: Mapping[Norm, tuple[str, ...]] = {
    "linf": ("0.01", "0.025", "0.05", "0.1"),
    "l2": ("0.1", "0.25", "0.5", "1"),
    "l1": ("1", "2.5", "5", "10"),
    "l0": ("1", "3", "10", "30"),
}
"""The values of eps if none is given, by norm."""
_EPS_WORDS = "; ".join(f"{norm}: {' '.join(values)}" for norm, values in _EPS.items())
_REMOVED = MODEL_FROM | {"--attack": "write the attack before MODEL, such as casemate attack pgd model.safetensors"}
_WRAPPERS: tuple[type[AbstractAttack], ...] = (EOT, Transferable, Restarts)
"""Classes of attacks that wrap another attack and are available as options, the innermost first."""


@dataclass(frozen=True, kw_only=True)
class AbstractAttackCommand:
    """The options that all attacks share; `attack_command` adds those of one attack."""

    kind: ClassVar[type[AbstractAttack]]
    model: ModelName
    eps: Annotated[tuple[str, ...], arg(metavar="EPS ...", help_behavior_hint=f"(default: {_EPS_WORDS})")] = ()
    """Radii in pixel units, for pixels in [0, 1]; fractions such as 8/255 are fine."""
    target: Annotated[str | None, arg(metavar="CLASS", help_behavior_hint="(default: any wrong class)")] = None
    """Aim at this class, given by name or index; images of the class itself are left out."""
    images: Annotated[int, arg(metavar="N")] = 1000
    """Attack N images, the first ones if --subset does not say otherwise."""
    subset: Subset = None
    dataset: TestSet = None
    data: DataFile = None
    data_dir: DataDir = None
    inference: Annotated[
        Literal["stochastic-affine", "noise"] | None, arg(help_behavior_hint="(default: the model as it is)")
    ] = None
    """Randomise the model. stochastic-affine: apply a random affine transform to every input; noise: leave the model's
    noise layers on, as in training."""
    mask: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: all pixels may change)")] = None
    """Change only what this mask allows: a picture (white may change), or an array of 0 and 1 (.npy) whose shape
    broadcasts to that of the images."""
    mask_box: Annotated[
        tuple[int, int, int, int] | None,
        arg(metavar="TOP LEFT HEIGHT WIDTH", help_behavior_hint="(default: all pixels may change)"),
    ] = None
    """Change only the pixels in this rectangle."""
    levels: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: any values)")] = None
    """Adversarial images have values on a grid of N levels, within eps; 256 for 8 bits."""
    png: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: none are written)")] = None
    """Write the adversarial images to this folder as PNG files, read them again and count how many still fool. Implies
    --levels 256."""
    seed: Seed = 0
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: nothing is written)")] = None
    """The folder for results, images and a contact sheet."""
    overwrite: Overwrite = False
    dry_run: Flag = False
    """Attack nothing; print the settings and the cost."""
    json: Json = False
    track: Track = ()
    attack: Any  # the settings of the attack
    wrapper: Any  # the settings of its wrappers
    loading: ModelOptions = field(default_factory=ModelOptions)
    reading: Reading = field(default_factory=Reading)
    machine: Machine = field(default_factory=Machine)

    def run(self) -> None:
        """Attack, write the files (with --out), print the result; with --dry-run only print settings and cost."""
        at_least_one("images", self.images)
        if self.out is not None and not self.dry_run:
            check_folder(self.out)
        if self.png is not None and self.levels not in (None, 256):
            raise SettingError(f"--levels {self.levels} with --png; a PNG file has 256 levels: leave out --levels")
        if self.png is not None and not self.dry_run:
            check_folder(self.png)
            if self.png.exists() and any(self.png.iterdir()) and not self.overwrite:
                raise SettingError(
                    f"--png {self.png} has files already; expected a new or empty folder, or --overwrite"
                )
        check_trackers(self.track)
        with watching() as observer:
            device, threads = self.machine.set_up(observer)
            from casemate.cli.attack import run, show
            from casemate.cli.attack.parts import read_parts

            wrappers = chosen_settings(self.wrapper)
            if "parts" in wrappers:
                wrappers["parts"] = read_parts(wrappers["parts"])
            series = run.build_attacks(
                self.kind,
                self.eps,
                chosen_settings(self.attack),
                [(kind, _own(kind)[0], wrappers) for kind in _wrappers_of(self.kind)],
                default_eps=_EPS,
                randomised=self.inference is not None,
            )
            plan = run.prepare(
                self.model,
                series,
                wrappers,
                loading=self.loading,
                inference=self.inference,
                file=self.data,
                dataset=self.dataset,
                data_dir=self.data_dir,
                images=self.images,
                subset=self.subset,
                reading=self.reading,
                target=self.target,
                mask=self.mask,
                mask_box=self.mask_box,
                levels=256 if self.png is not None else self.levels,
                pictures=self.png is not None,
                seed=self.seed,
                device=device,
                observer=observer,
            )
            if self.dry_run:
                display = partial(show.show_attack_plan, plan)
            else:
                if self.out is not None:
                    plan = run.with_hashes(plan)
                    outputs.check_results(self.out, plan.about, overwrite=self.overwrite, observer=observer)
                with tracking(
                    self.track,
                    observer,
                    name=f"attack-{plan.given.short}",
                    folder=(self.out or Path("runs") / f"attack-{plan.given.short}") / "tensorboard",
                    settings=plan.about,
                ) as tracked:
                    found = run.run(plan, keep=self.out is not None or self.png is not None, observer=tracked)
                    if self.png is not None:
                        run.write_pictures(self.png, plan, found)
                    display = partial(show.show, plan, found)
                    if self.out is not None:
                        written = run.write(self.out, plan, found, threads, tracked)
                        observer.message(f"Written to {self.out}: {', '.join(written)}")
        display(as_json=self.json)


def parse(argv: Sequence[str]) -> AbstractAttackCommand:
    """The command `casemate attack`, parsed from `argv`: the name of an attack, a model, and options of that attack.

    Raises `SettingError` for an unknown attack, with the nearest known one, and for an option of earlier versions.
    """
    parsing.refuse_removed(argv, _REMOVED)
    known = attack_types()
    if argv and not argv[0].startswith("-"):
        try:
            kind = attack_type(argv[0])
        except SettingError as error:
            order = "The attack comes before the model: casemate attack ATTACK MODEL"
            raise error if str(error).endswith("?") else SettingError(f"{error}. {order}") from error
        name = next(name for name, each in known.items() if each is kind)
    else:
        name = parsing.choose_command("casemate attack", command.__doc__ or "", known, summary_of, argv, what="attack")
    return parsing.parse(attack_command(known[name]), f"casemate attack {name}", _words(known[name], name), argv[1:])


def attack_command(kind: type[AbstractAttack]) -> type[AbstractAttackCommand]:
    """The dataclass of `casemate attack NAME` for the attack class `kind`: the shared options, and the attack's own.

    Shared options that do not apply to the attack, such as --eps or --target, are hidden.
    """
    names = {each.name for each in fields(kind)}
    changed: list[tuple[str, Any, Any]] = [
        ("attack", options_of(kind, skip=["eps"], words=_settings_words(kind)), field()),
        ("wrapper", _wrapper_options(kind), field()),
    ]
    if "eps" not in names and issubclass(kind, AbstractMinimumNormAttack):
        words = "Radii, in pixel units for pixels in [0, 1], at which accuracy is reported; the attack runs once."
        hint = f"(default: {_EPS_WORDS})"
        changed.append(
            ("eps", Annotated[tuple[str, ...], arg(metavar="EPS ...", help=words, help_behavior_hint=hint)], ())
        )
    elif "eps" not in names:
        changed.append(("eps", Suppress[tuple[str, ...]], ()))
    if not kind.maskable:
        changed += [("mask", Suppress[Path | None], None), ("mask_box", Suppress[Any], None)]
    if not kind.targetable:
        changed.append(("target", Suppress[str | None], None))
    return make_dataclass(
        f"{kind.__name__}Command",
        changed,
        bases=(AbstractAttackCommand,),
        frozen=True,
        kw_only=True,
        namespace={"kind": kind},
    )


def _own(wrapper: type[AbstractAttack]) -> tuple[str, list[str]]:
    """Names of a wrapper's fields: the one that holds the wrapped attack, and a list of the others."""
    hints = get_type_hints(wrapper)
    inside = next(name for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, AbstractAttack))
    return inside, [each.name for each in fields(wrapper) if each.name != inside]


def _wrappers_of(kind: type[AbstractAttack]) -> list[type[AbstractAttack]]:
    """The wrappers in `_WRAPPERS` that accept an attack of class `kind` and have no field that `kind` has itself."""
    names = {each.name for each in fields(kind)}
    fitting = [each for each in _WRAPPERS if issubclass(kind, get_type_hints(each)[_own(each)[0]])]
    return [each for each in fitting if names.isdisjoint(_own(each)[1])]


def _wrapper_options(kind: type[AbstractAttack]) -> type:
    """A dataclass with the options of all wrappers that fit an attack; None (the default): the wrapper is not used."""
    hint = "(default: not used)"
    options: list[tuple[str, Any, Any]] = []
    for wrapper in _wrappers_of(kind):
        helps, hints = field_help(wrapper), get_type_hints(wrapper)
        for name in _own(wrapper)[1]:
            if wrapper is Transferable:
                words = (
                    f"{helps[name]} Of {', '.join(PARTS)}; with settings as in variance-tuning:samples=5,beta=1.5. "
                    f"(Transferable: {summary_of(wrapper)[0].lower()}{summary_of(wrapper)[1:]})"
                )
                option = Annotated[tuple[str, ...], arg(metavar="PART ...", help=words, help_behavior_hint=hint)]
                options.append((name, option, ()))
                continue
            words = f"{helps[name]} ({wrapper.__name__}: {summary_of(wrapper)[0].lower()}{summary_of(wrapper)[1:]})"
            options.append(
                (name, Annotated[hints[name] | None, arg(metavar="N", help=words, help_behavior_hint=hint)], None)
            )
    made = make_dataclass(f"{kind.__name__}Wrappers", options, frozen=True, kw_only=True)
    made.__doc__ = "Attacks wrapped around this one."
    return made


def _words(kind: type[AbstractAttack], name: str) -> str:
    """The help text of one attack: a summary, its paper, and an example."""
    paper = paper_of(kind)
    about = [summary_of(kind), *([f"- {paper}."] if paper else [])]
    # tyro joins a line that begins with a letter to the one before, and breaks none
    lines = [line for each in about for line in textwrap.wrap(each, 79, subsequent_indent="  ")] + ["", "Examples:"]
    radius = " --eps 8/255" if "eps" in {each.name for each in fields(kind)} else ""
    lines += [f"  casemate attack {name} model.safetensors{radius}"]
    return "\n".join(lines)


def _settings_words(kind: type[AbstractAttack]) -> str:
    """The help text above an attack's settings: its class, and which settings can be set in Python only."""
    names = python_only(kind)
    return f"The fields of {kind.__module__}.{kind.__name__}." + (f" Python only: {', '.join(names)}." if names else "")
