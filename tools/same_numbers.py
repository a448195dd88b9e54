"""Do two checkouts compute the same numbers on this machine? For a change that only moves or renames.

    python tools/same_numbers.py OLD NEW [--only attack/PGD] [--slow]

Each checkout hashes, in a process of its own, the bytes of what it computes on small networks: every attack x norm x
targeted or not, sweeps, curves, an evaluation, every training, the NSL rule, every augmentation and noise. Hashes
differ between processors, so none is kept. Exits with 1 where a hash differs, or where OLD has a case that NEW lacks.

Names may differ between the checkouts: a case asks for each by all the names it has had.
"""

import argparse
import dataclasses
import hashlib
import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FORMER = {
    "step_size": ("step",),
    "binary_search_steps": ("binary_steps",),
    "n_queries": ("queries",),
    "use_larger_eps": ("wide",),
    "eot_samples": ("draws",),
    "num_samples": ("draws",),
    "keep": ("track",),
    "continue_after_stop": ("run_on",),
    "probability": ("share",),
    "p": ("probability", "share"),
    "first_success": ("worst",),
}
"""Today's names of settings and what each was called before."""
ROOMS = {"evaluation": "evaluate", "training": "train"}


def room(name: str) -> Any:
    """A module of casemate by today's name or the former one."""
    try:
        return importlib.import_module(f"casemate.{name}")
    except ModuleNotFoundError:
        first, *rest = name.split(".")
        return importlib.import_module(".".join(["casemate", ROOMS.get(first, first), *rest]))


def named(module: Any, *names: str) -> Any:
    """The first of `names` that `module` has."""
    for name in names:
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"{module} has none of {names}")


def make(kind: Callable[..., Any], **settings: Any) -> Any:
    """Build a dataclass from settings under today's names, or under those that it has."""
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {}
    for name, value in settings.items():
        other = next((each for each in (name, *FORMER.get(name, ())) if each in known), name)
        values[other] = value
    try:
        return kind(**values)
    except Exception:
        return kind(**{name: FORMER.get(v, (v,))[0] if isinstance(v, str) else v for name, v in values.items()})


def digest(*values: Any) -> str:
    """A hash of tensors, numbers, and what JSON can say."""
    import torch

    hashed = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            hashed.update(str((tuple(value.shape), value.dtype)).encode())
            hashed.update(value.detach().cpu().contiguous().numpy().tobytes())
        else:
            hashed.update(repr(value).encode())
    return hashed.hexdigest()[:16]


def network(seed: int = 0, *, channels: int = 1, dropout: float = 0.0) -> Any:
    """A small convolutional network on 8 x 8 images of 4 classes."""
    import torch
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(128, 4),
        )


class Noisy:
    """Makes a network that answers at random."""

    def __new__(cls, net: Any) -> Any:
        import torch
        from torch import nn

        class Noise(nn.Module):
            def forward(self, images: Any) -> Any:
                return net(images + 0.05 * torch.randn_like(images))

        return Noise()


def cases(slow: bool) -> Iterator[tuple[str, Callable[[], str]]]:
    """Every case by name, and what computes its hash."""
    import torch

    from casemate import Classifier

    attacks, data, defenses = (room(name) for name in ("attacks", "data", "defenses"))
    training, evaluation = room("training"), room("evaluation")
    labels = torch.arange(24) % 4
    generator = torch.Generator().manual_seed(3)
    means = torch.rand(4, 1, 8, 8, generator=generator)
    images = (0.7 * means[labels] + 0.3 * torch.rand(24, 1, 8, 8, generator=generator)).clamp(0, 1)
    pixels = (images * 255).round().to(torch.uint8)

    def classifier(net: Any = None) -> Any:
        return Classifier(net or trained(), input_shape=(1, 8, 8), classes=list("abcd"))

    @dataclasses.dataclass
    class Once:
        net: Any = None

    once = Once()

    def trained() -> Any:
        """The network after a few plain steps, so that it classifies and attacks have something to do."""
        if once.net is None:
            net = network()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
            for _ in range(60):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(net(images), labels).backward()
                optimizer.step()
            once.net = net
        return once.net

    def of_result(result: Any) -> str:
        passes = (result.passes.forward, result.passes.backward)
        return digest(
            result.adversarial, result.prediction, result.success, result.status, result.loss, result.norm, passes
        )

    targets = (labels + 1) % 4
    balls: dict[str, dict[str, Any]] = {"linf": {"eps": 0.1}, "l2": {"eps": 0.6}, "l1": {"eps": 3.0}}
    settings: dict[str, list[dict[str, Any]]] = {
        "FGSM": [{}, {"keep": "last"}],
        "BIM": [{"steps": 5}, {"steps": 5, "clip": "range"}, {"steps": 5, "keep": "last"}],
        "PGD": [{"steps": 5}, {"steps": 5, "restarts": 3}, {"steps": 5, "loss": "dlr", "step_size": 0.05}],
        "MIFGSM": [{"steps": 5}, {"steps": 5, "decay": 0.5}],
        "APGD": [{"steps": 12}, {"steps": 12, "restarts": 2, "loss": "dlr"}, {"steps": 8, "eot_samples": 2}],
        "TargetedAPGD": [{"steps": 12, "classes": 3}],
        "Square": [{"n_queries": 100}, {"n_queries": 60, "restarts": 2}],
        "SPSA": [{"steps": 4, "samples": 20}],
        "UniformNoise": [{"num_samples": 30}],
        "CornerNoise": [{"num_samples": 30}],
        "AutoAttack": [{}],
    }
    nearest: dict[str, list[dict[str, Any]]] = {
        "FAB": [{"steps": 10}, {"steps": 10, "restarts": 2}],
        "TargetedFAB": [{"steps": 10, "classes": 3}],
        "CarliniWagner": [
            {"steps": 30, "binary_search_steps": 3, "initial_const": 5.0},
            {"steps": 30, "binary_search_steps": 2, "initial_const": 9.0, "confidence": 0.5},
        ],
        "DeepFool": [{}, {"overshoot": 0.1}],
        "EAD": [{"steps": 30, "binary_search_steps": 3, "initial_const": 5.0}],
        "LBFGS": [{"steps": 5, "binary_search_steps": 3}],
        "HopSkipJump": [{"n_queries": 400, "steps": 4}],
        "DDN": [{"steps": 30}],
        "FMN": [{"steps": 30}],
        "ALMA": [{"steps": 30}],
        "PDGD": [{"steps": 30}],
        "PDPGD": [{"steps": 30}],
        "SigmaZero": [{"steps": 30}],
        "SurFree": [{"n_queries": 400}, {"n_queries": 400, "n_ortho": 0, "frequencies": 1.0}],
    }

    def attack(kind: str, norm: str, chosen: dict[str, Any], aimed: bool) -> str:
        more = {} if kind in nearest else balls[norm]
        built = make(getattr(attacks, kind), norm=norm, **more, **chosen)
        return of_result(built(classifier(), images, labels, targets=targets if aimed else None, seed=7))

    for kind, variants in {**settings, **nearest}.items():
        for number, chosen in enumerate(variants):
            for norm in balls:
                for aimed in (False, True):
                    name = f"attack/{kind}/{number}/{norm}/{'targeted' if aimed else 'untargeted'}"
                    yield name, lambda k=kind, n=norm, c=chosen, a=aimed: attack(k, n, c, a)
    for norm, ball in balls.items():
        for aimed in (False, True):

            def wrapped(wrap: str, norm: str = norm, ball: dict[str, Any] = ball, aimed: bool = aimed) -> str:
                inner = make(attacks.PGD, steps=5, norm=norm, **ball)
                model = classifier(Noisy(trained())) if wrap == "EOT" else classifier()
                if wrap == "EOT":
                    outer = make(attacks.EOT, attack=inner, eot_samples=3)
                elif wrap == "Restarts":
                    outer = make(attacks.Restarts, attack=inner, restarts=3)
                else:
                    outer = make(attacks.Transfer, attack=inner, substitute=classifier(network(5)))
                return of_result(outer(model, images, labels, targets=targets if aimed else None, seed=7))

            for wrap in ("EOT", "Restarts", "Transfer"):
                yield f"attack/{wrap}/{norm}/{'targeted' if aimed else 'untargeted'}", lambda w=wrap, f=wrapped: f(w)
    yield "attack/Spatial", lambda: of_result(attacks.Spatial()(classifier(), images, labels))

    def tensors(found: Any) -> str:
        """A hash of all tensors inside, at whatever depth."""
        if isinstance(found, torch.Tensor):
            return digest(found)
        if hasattr(found, "__dict__"):
            found = list(vars(found).values())
        elif isinstance(found, dict):
            found = list(found.values())
        parts = [tensors(each) for each in found] if isinstance(found, list | tuple) else []
        return digest(*filter(None, parts)) if any(parts) else ""

    def sweep(axis: str, only_worst: bool, norm: str) -> str:
        values = [0.0, 0.5 * balls[norm]["eps"], balls[norm]["eps"]]
        built = make(attacks.PGD, steps=4, norm=norm, **balls[norm])
        if axis == "eps":
            return tensors(attacks.sweep_eps(built, classifier(), images, labels, values, only_worst=only_worst))
        return tensors(attacks.sweep_steps(built, classifier(), images, labels, [1, 2, 4]))

    for axis in ("eps", "steps"):
        for only_worst in (False, True) if axis == "eps" else (False,):
            for norm in balls:
                name = f"sweep/{axis}/{'worst' if only_worst else 'all'}/{norm}"
                yield name, lambda a=axis, w=only_worst, n=norm: sweep(a, w, n)

    def labelled() -> Any:
        return data.LabelledImages(pixels=pixels, labels=labels)

    def evaluated(budget: str, norm: str) -> str:
        evaluate = evaluation.evaluate
        found = evaluate(
            classifier(), labelled(), eps=[balls[norm]["eps"] / 2, balls[norm]["eps"]], norm=norm, budget=budget
        )
        clean = found.clean
        return digest(
            named(found.cascade, "robust_mask", "robust"),
            named(found.cascade, "first_success", "winner"),
            clean.accuracy.value,
            tuple((each.value, each.low, each.high) for each in found.robust),
            found.cascade.passes.forward,
            found.cascade.passes.backward,
        )

    for budget in ("quick", "standard"):
        for norm in balls:
            yield f"evaluate/{budget}/{norm}", lambda b=budget, n=norm: evaluated(b, n)

    # Augmentations and noise, by name, with their default settings.
    from casemate.data.named import AUGMENTATIONS

    for name, kind in AUGMENTATIONS.items():

        def augmented(kind: Any = kind) -> str:
            drawn = torch.Generator().manual_seed(1)
            return digest(*(kind()(images.clone(), torch.arange(24), epoch, drawn) for epoch in range(3)))

        yield f"augment/{name}", augmented

    train_class = named(training, "TrainConfig", "Training")

    def weights(objective: Any, **more: Any) -> str:
        with torch.random.fork_rng():
            torch.manual_seed(11)
            model = classifier(network(2, dropout=0.2))
            training.fit(
                model, labelled(), labelled(), make(train_class, epochs=3, batch_size=8, **more), objective=objective()
            )
        return digest(*model.state_dict().values())

    objectives: dict[str, Callable[[], Any]] = {
        "CrossEntropy": training.CrossEntropy,
        "AdversarialRegularization": defenses.AdversarialRegularization,
        "AdversarialRegularization-linf": lambda: defenses.AdversarialRegularization(norm="linf", step_size=0.05),
        "AdversarialTraining": lambda: make(defenses.AdversarialTraining, eps=0.1, steps=3),
        "Temperature": lambda: named(defenses, "TemperatureCrossEntropy", "AtTemperature")(temperature=10.0),
        "Distillation": lambda: defenses.Distillation(teacher=classifier(), temperature=10.0),
    }
    for name, objective in objectives.items():
        yield f"train/{name}", lambda o=objective: weights(o)
    for optimizer in ("adamw", "sgd"):
        yield (
            f"train/{optimizer}",
            lambda o=optimizer: weights(
                training.CrossEntropy, optimizer=o, schedule="one-cycle", ema=0.9, weight_decay=1e-3
            ),
        )

    for name in named(room("models"), "names")():
        if name.startswith("paper") or slow:

            def created(name: str = name) -> str:
                model = named(room("models"), "create")(name, input_shape=(1, 28, 28), classes=tuple("abcd"), seed=3)
                return digest(*model.state_dict().values())

            yield f"network/{name}", created


def hash_all(only: str, slow: bool) -> dict[str, str]:
    """The hash of every case, or the error that its computation ended with."""
    import torch

    from casemate import CasemateError

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = {}
    for name, compute in cases(slow):
        if only not in name:
            continue
        try:
            found[name] = compute()
        except CasemateError as error:  # a norm or a target that the attack does not take
            found[name] = f"refused: {type(error).__name__}"
    return found


def main() -> int:
    """Compare two checkouts, or, with --hash, print the hashes of the casemate that is imported."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--hash", action="store_true")
    given = parser.parse_args()
    if given.hash:
        print(json.dumps(hash_all(given.only, given.slow)))
        return 0
    if len(given.checkouts) != 2:
        parser.error(f"{len(given.checkouts)} checkouts; expected two, the old one and the new one")
    started = []
    for checkout in given.checkouts:
        command = [sys.executable, __file__, "--hash", "--only", given.only, *(["--slow"] if given.slow else [])]
        environment = {**os.environ, "PYTHONPATH": str(checkout.resolve() / "src")}
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    old, new = (json.loads(process.communicate()[0]) for process in started)
    differing = [name for name in old if new.get(name) != old[name]]
    for name in differing:
        print(f"{name}: {old[name]} -> {new.get(name, 'missing')}")
    refused = sum(value.startswith("refused") for value in old.values())
    print(
        f"{len(old)} cases ({refused} refused), {len(new.keys() - old.keys())} only in the new checkout; "
        f"{len(differing)} differ"
    )
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
