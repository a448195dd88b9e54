"""Networks as users write them get the numbers of their well-behaved twins, or one clear error, from every entry point.

Whatever happens, what belongs to the user is afterwards, bit for bit, what it was before: images, labels, weights,
modes, attributes, random numbers and the switches of PyTorch.
"""

import contextlib
import json
import random
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import (
    ALMA,
    APGD,
    BIM,
    DDN,
    EAD,
    EOT,
    FAB,
    FGSM,
    FMN,
    LBFGS,
    MIFGSM,
    PDGD,
    PDPGD,
    PGD,
    SPSA,
    AbstractAttack,
    AutoAttack,
    CarliniWagner,
    CornerNoise,
    DeepFool,
    HopSkipJump,
    Restarts,
    SigmaZero,
    SparseRS,
    Spatial,
    Square,
    Status,
    SurFree,
    TargetedAPGD,
    TargetedFAB,
    Transfer,
    UniformNoise,
)
from casemate.cli.main import main
from casemate.data import LabelledImages
from casemate.defenses import AdversarialRegularization, AdversarialTraining, Distillation, Recipe
from casemate.errors import CasemateWarning, ModelError
from casemate.evaluation import (
    eps_curve,
    evaluate,
    evaluate_clean,
    evaluation,
    gradient_alignment,
    make_record,
    run_cascade,
    steps_curve,
    targeted_matrix,
    verify_record,
    worst_case,
    zero_gradients,
)
from casemate.losses import LOSSES
from casemate.models import Classifier
from casemate.training import TrainConfig, fit
from user_networks import NETWORKS, UserNetwork, convolutional

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("unchecked")]

EPS = 0.05
COUNT = 12
Found = dict[str, Any]
State = dict[str, object]


# What must stay as it was ---------------------------------------------------------------------------------------------
def switches() -> State:
    """The random numbers and the switches of this process that a library must leave alone."""
    cudnn, numpy = torch.backends.cudnn, np.random.get_state(legacy=True)  # noqa: NPY002  # the global ones are meant
    assert isinstance(numpy, tuple)
    return {
        "PyTorch's random numbers": bytes(torch.get_rng_state().numpy()),
        "NumPy's random numbers": (numpy[1].tobytes(), *numpy[2:]),
        "Python's random numbers": hash(random.getstate()),
        "grad enabled": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        "deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "matmul precision": torch.get_float32_matmul_precision(),
        "NumPy's error handling": str(np.geterr()),
        "warning filters": repr(warnings.filters),
    }


@contextlib.contextmanager
def switches_restored() -> Iterator[None]:
    """What a network or a library has left changed does not reach the next test."""
    grad, threads, dtype, cudnn = torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype(), {}
    cudnn = {name: getattr(torch.backends.cudnn, name) for name in ("benchmark", "deterministic")}
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(False)
        for name, value in cudnn.items():
            setattr(torch.backends.cudnn, name, value)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The caller works in another precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def state_of(**owned: object) -> State:
    """Everything about tensors, modules and what they hold, and about this process, by readable names."""
    state = switches()
    seen: set[int] = set()
    for name, value in owned.items():
        _enter(state, name, value, seen)
    return state


def _enter(state: State, name: str, value: object, seen: set[int]) -> None:
    if isinstance(value, Tensor):
        _enter_tensor(state, name, value, seen)
    elif isinstance(value, torch.jit.ScriptModule):
        state[f"{name}: mode"] = value.training
        for key, tensor in value.state_dict(keep_vars=True).items():
            _enter_tensor(state, f"{name}.{key}", tensor, seen)
    elif isinstance(value, nn.Module):
        _enter_module(state, name, value, seen)
    elif isinstance(value, LabelledImages):
        _enter_tensor(state, f"{name}.pixels", value.pixels, seen)
        _enter_tensor(state, f"{name}.labels", value.labels, seen)
    elif isinstance(value, np.ndarray):
        state[f"{name}: attribute"] = (value.dtype, value.shape, value.tobytes())
    elif isinstance(value, torch.Generator):
        state[f"{name}: attribute"] = bytes(value.get_state().numpy())
    elif isinstance(value, Mapping):
        state[f"{name}: attribute"] = tuple(map(str, value))
        for key, each in value.items():
            _enter(state, f"{name}[{key}]", each, seen)
    elif isinstance(value, list | tuple):
        state[f"{name}: attribute"] = len(value)
        for number, each in enumerate(value):
            _enter(state, f"{name}[{number}]", each, seen)
    elif value is None or isinstance(value, bool | int | float | str | bytes | torch.dtype | torch.device):
        state[f"{name}: attribute"] = repr(value)
    else:
        state[f"{name}: attribute"] = (type(value).__name__, id(value))


def _enter_tensor(state: State, name: str, value: Tensor, seen: set[int]) -> None:
    if not value.is_leaf and not isinstance(value, nn.Parameter):
        state[f"{name}: graph"] = type(value.grad_fn).__name__
    state[f"{name}: identity"] = (id(value), value.data_ptr())
    state[f"{name}: form"] = (value.dtype, tuple(value.shape), value.stride(), value.is_inference())
    state[f"{name}: requires_grad"] = value.requires_grad
    flat = value.detach().reshape(-1).contiguous()
    state[f"{name}: values"] = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    if value.is_leaf:
        _enter(state, f"{name}: gradient", value.grad, seen)


_REGISTERS = ("_parameters", "_buffers", "_modules")


def _enter_module(state: State, name: str, module: nn.Module, seen: set[int]) -> None:
    if id(module) in seen:
        return
    seen.add(id(module))
    state[f"{name}: mode"] = module.training
    for register in _REGISTERS:
        entries = getattr(module, register)
        state[f"{name}: {register}"] = [(key, id(each)) for key, each in entries.items()]
        for key, each in entries.items():
            _enter(state, f"{name}.{key}{' (weight)' if register == '_parameters' else ''}", each, seen)
    for key, each in vars(module).items():
        if key not in (*_REGISTERS, "training") and not (isinstance(module, Classifier) and key.startswith("_")):
            _enter(state, f"{name}.{key}", each, seen)


def changes(before: State, after: State, training: bool = False) -> list[str]:
    """The names of what is not as it was; `training` may change all of a model but which weights it has and trains."""
    names = [name for name in {**before, **after} if before.get(name, "absent") != after.get(name, "absent")]
    if training:
        own = [name for name in names if name.startswith("model")]
        weights = [name for name in own if name.endswith(("(weight): requires_grad", "_parameters"))]
        names = [name for name in names if name not in own or name in weights]
    return names


# The entry points -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Entry:
    """A way into the library; `call` returns the numbers that matter."""

    name: str
    call: Callable[[Classifier, Tensor, Tensor], Found]
    trains: bool = False
    """The model itself is what changes."""

    def __str__(self) -> str:
        return self.name


def _attacking(name: str, make: Callable[[Classifier], AbstractAttack]) -> Entry:
    def call(model: Classifier, pixels: Tensor, labels: Tensor) -> Found:
        result = make(model)(model, pixels, labels)
        return {
            "success": result.success,
            "status": result.status,
            "prediction": result.prediction,
            "images": result.adversarial,
            "loss": result.loss,
            "norm": result.norm,
        }

    return Entry(name, call)


_FOLLOWING: Mapping[str, Callable[[Classifier], AbstractAttack]] = {
    "FGSM": lambda _: FGSM(eps=EPS),
    "BIM": lambda _: BIM(eps=EPS, steps=3),
    "PGD": lambda _: PGD(eps=EPS, steps=3, restarts=2),
    "PGD-l2": lambda _: PGD(eps=0.3, norm="l2", steps=3, random_start=False),
    "MIFGSM": lambda _: MIFGSM(eps=EPS, steps=3),
    "APGD": lambda _: APGD(eps=EPS, steps=5),
    "TargetedAPGD": lambda _: TargetedAPGD(eps=EPS, steps=4, classes=3),
    "FAB": lambda _: FAB(steps=3),
    "TargetedFAB": lambda _: TargetedFAB(steps=3, classes=3),
    "DeepFool": lambda _: DeepFool(steps=3),
    "CarliniWagner": lambda _: CarliniWagner(steps=4, binary_search_steps=2, initial_const=1.0),
    "EAD": lambda _: EAD(steps=4, binary_search_steps=2, initial_const=1.0),
    "LBFGS": lambda _: LBFGS(steps=3, binary_search_steps=2, initial_const=1.0),
    "DDN": lambda _: DDN(steps=4),
    "FMN": lambda _: FMN(norm="l1", steps=4),
    "ALMA": lambda _: ALMA(steps=4),
    "PDGD": lambda _: PDGD(steps=4),
    "PDPGD": lambda _: PDPGD(norm="linf", steps=4),
    "SigmaZero": lambda _: SigmaZero(steps=4),
    "EOT": lambda _: EOT(attack=PGD(eps=EPS, steps=2), eot_samples=2),
    "Restarts": lambda _: Restarts(attack=PGD(eps=EPS, steps=2), restarts=2),
    "Transfer": lambda model: Transfer(attack=PGD(eps=EPS, steps=3), substitute=model),
    "AutoAttack": lambda _: AutoAttack(eps=0.3),  # so large that the first of its attacks fool nearly all
}
"""Attacks that follow the gradient."""
_GRADIENT_FREE: Mapping[str, Callable[[Classifier], AbstractAttack]] = {
    "Square": lambda _: Square(eps=EPS, n_queries=10),
    "SparseRS": lambda _: SparseRS(eps=4, n_queries=10),
    "HopSkipJump": lambda _: HopSkipJump(n_queries=100, starts=10, evaluations=20),
    "SurFree": lambda _: SurFree(n_queries=100, starts=10),
    "SPSA": lambda _: SPSA(eps=EPS, steps=2, samples=3),
    "Spatial": lambda _: Spatial(rotations=3, shifts=3),
    "UniformNoise": lambda _: UniformNoise(eps=EPS, num_samples=3),
    "CornerNoise": lambda _: CornerNoise(eps=EPS, num_samples=3),
}
"""Attacks that ask for answers only."""
_LOSSES: Mapping[str, Callable[[Classifier], AbstractAttack]] = {
    f"{name}-{loss}": lambda _, make=make, loss=loss: make(loss)
    for loss in LOSSES
    for name, make in {
        "FGSM": lambda loss: FGSM(eps=EPS, loss=loss),
        "BIM": lambda loss: BIM(eps=EPS, steps=3, loss=loss),
        "APGD": lambda loss: APGD(eps=EPS, steps=5, loss=loss),
    }.items()
}


def _entries(attacks: Mapping[str, Callable[[Classifier], AbstractAttack]]) -> list[Entry]:
    return [_attacking(name, make) for name, make in attacks.items()]


FOLLOWING, GRADIENT_FREE = _entries(_FOLLOWING), _entries(_GRADIENT_FREE)
WITH_LOSSES = _entries(_LOSSES)
ATTACKS = FOLLOWING + GRADIENT_FREE
CORE = [each for each in ATTACKS if each.name in ("PGD", "FAB", "Square")]
FEW: Mapping[str, AbstractAttack] = {"pgd": PGD(eps=EPS, steps=3), "square": Square(eps=EPS, n_queries=10)}


def _eps_curve(model: Classifier, pixels: Tensor, labels: Tensor) -> Found:
    found = eps_curve(model, PGD(eps=0.1, steps=10), LabelledImages(pixels=pixels, labels=labels), [0, 0.02, 0.05, 0.1])
    assert found.last is not None
    return {"worst": found.worst, "right": found.last.right, "status": found.last.status, "loss": found.last.loss}


def _steps_curve(model: Classifier, pixels: Tensor, labels: Tensor) -> Found:
    found = steps_curve(model, BIM(eps=EPS, steps=5), LabelledImages(pixels=pixels, labels=labels), [0, 1, 3, 5])
    assert found.last is not None
    return {"worst": found.worst, "right": found.last.right, "status": found.last.status, "loss": found.last.loss}


def _clean(model: Classifier, pixels: Tensor, labels: Tensor) -> Found:
    images = LabelledImages(pixels=pixels, labels=labels)
    found = [evaluate_clean(model, images) for _ in range(2)]
    return {f"{name}, {turn}": getattr(each, name) for turn, each in zip(("first", "second"), found, strict=True)
            for name in ("prediction", "correct", "loss", "confidence", "gap")}  # fmt: skip


def _cascade(model: Classifier, pixels: Tensor, labels: Tensor) -> Found:
    found = run_cascade(model, FEW, LabelledImages(pixels=pixels, labels=labels), [0.02, EPS])
    return {
        "robust": found.robust,
        "first_success": found.first_success,
        "images": found.adversarial,
        "distance": found.distance,
    }


def _worst_case(model: Classifier, pixels: Tensor, labels: Tensor) -> Found:
    attacks = {"fgsm": FGSM(eps=EPS), "bim": BIM(eps=EPS, steps=3)}
    found = worst_case(model, attacks, LabelledImages(pixels=pixels, labels=labels), [0.02, EPS])
    return {"every": found.every, **found.each}


def _targeted(model: Classifier, pixels: Tensor, labels: Tensor) -> Found:
    found = targeted_matrix(model, BIM(eps=0.1, steps=3), LabelledImages(pixels=pixels, labels=labels))
    return {"labels": found.labels, "reached": found.reached.sum(1)}  # a masked class is never reached


def _zero(model: Classifier, pixels: Tensor, labels: Tensor) -> Found:
    return zero_gradients(model, LabelledImages(pixels=pixels, labels=labels))


def _alignment(model: Classifier, pixels: Tensor, labels: Tensor) -> Found:
    return {"cosine": gradient_alignment(model, LabelledImages(pixels=pixels, labels=labels), 0.1)}


def _evaluate(model: Classifier, pixels: Tensor, labels: Tensor) -> Found:
    found = evaluate(model, LabelledImages(pixels=pixels, labels=labels), eps=EPS, attacks=FEW, force=True)
    return {
        "clean": found.clean.correct,
        "robust": found.cascade.robust,
        "first_success": found.cascade.first_success,
        "verdict": found.verdict.word,
        "gravest findings": [each.check for each in found.findings if each.severity == "voids"],
    }


def _record(model: Classifier, pixels: Tensor, labels: Tensor) -> Found:
    images = LabelledImages(pixels=pixels, labels=labels)
    found = evaluate(model, images, eps=EPS, attacks=FEW, force=True)
    record, adversarial_prediction = make_record(found, model, name="network", data="images")
    verified = verify_record(record, model, images=images)
    return {"taken for": adversarial_prediction, "first_success": record.first_success, "holds": verified.holds}


def _few_epochs(pixels: Tensor, labels: Tensor) -> tuple[LabelledImages, LabelledImages, TrainConfig]:
    images = LabelledImages(pixels=pixels, labels=labels)
    return images, images[:5], TrainConfig(epochs=2, batch_size=4)


def _history(history: list[dict[str, Any]]) -> Found:
    names = ("loss", "accuracy", "val_loss", "val_accuracy")
    return {f"{name} of epoch {row['epoch']}": row[name] for row in history for name in names}


def _fit(model: Classifier, pixels: Tensor, labels: Tensor) -> Found:
    return _history(fit(model, *_few_epochs(pixels, labels)).history)


def _fit_adversarially(model: Classifier, pixels: Tensor, labels: Tensor) -> Found:
    recipe = Recipe(objective=AdversarialTraining(eps=EPS, steps=2))
    return _history(recipe.fit(model, *_few_epochs(pixels, labels)).history)


def _fit_regularised(model: Classifier, pixels: Tensor, labels: Tensor) -> Found:
    recipe = Recipe(objective=AdversarialRegularization(multiplier=0.5, step_size=0.1, norm="linf"))
    return _history(recipe.fit(model, *_few_epochs(pixels, labels)).history)


def _teach(model: Classifier, pixels: Tensor, labels: Tensor) -> Found:
    """The user's network is the teacher."""
    shape, classes = model.input_shape, len(model.classes)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), default_dtype(torch.float32):
        student = Classifier(convolutional(shape[0], classes, seed=5), input_shape=shape, classes=model.classes)  # pyright: ignore[reportArgumentType]
    recipe = Recipe(objective=Distillation(teacher=model, temperature=2.0))
    return _history(recipe.fit(student, *_few_epochs(pixels, labels)).history)


CLEAN = Entry("evaluate_clean", _clean)
MEASURES = [
    CLEAN,
    Entry("eps_curve", _eps_curve),
    Entry("steps_curve", _steps_curve),
    Entry("run_cascade", _cascade),
    Entry("worst_case", _worst_case),
    Entry("targeted_matrix", _targeted),
    Entry("zero_gradients", _zero),
    Entry("gradient_alignment", _alignment),
]
EVALUATE, RECORD = Entry("evaluate", _evaluate), Entry("make_record", _record)
TEACH = Entry("fit, as a teacher", _teach)
FITS = [
    Entry("fit", _fit, trains=True),
    Entry("fit, adversarial training", _fit_adversarially, trains=True),
    Entry("fit, adversarial regularisation", _fit_regularised, trains=True),
]
ALL = [*ATTACKS, *MEASURES, EVALUATE, *FITS, TEACH]


# Trying a network -----------------------------------------------------------------------------------------------------
def images_for(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """A dozen images, none of whose pixels lies at the bounds."""
    return torch.rand(COUNT, *shape, generator=torch.Generator().manual_seed(seed)) * 0.98 + 0.01


@cache
def _labels(twin: Callable[[], nn.Module], network: UserNetwork) -> Tensor:
    """What the twin says; of the first image something else."""
    model = network.twin_classifier()
    with switches_restored(), torch.no_grad():
        labels = model(network.pixels(images_for(network.shape)).float()).argmax(1).clone()
    labels[0] = (labels[0] + 1) % len(model.classes)
    return labels


def given_to(network: UserNetwork) -> tuple[Tensor, Tensor]:
    """Fresh images as the user stores them, and their labels."""
    pixels = network.pixels(images_for(network.shape)).clone()
    if network.twin is None or network.outcome == "refused":
        return pixels, torch.arange(COUNT) % network.classes
    return pixels, _labels(network.twin, network).clone()


@dataclass
class Outcome:
    """What came of one call."""

    numbers: Found
    error: Exception | None
    changed: list[str]
    warned: list[warnings.WarningMessage]

    @property
    def said(self) -> list[str]:
        """The kinds of warnings."""
        return sorted({each.category.__name__ for each in self.warned if issubclass(each.category, CasemateWarning)})


def made(make: Callable[[], Classifier]) -> Classifier:
    """A network, whatever PyTorch says of the way it is built."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def tried(
    entry: Entry,
    model: Classifier,
    pixels: Tensor,
    labels: Tensor,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Outcome:
    """Call an entry point in a context, and say what came of it and what is not as it was."""
    numbers: Found = {}
    error = None
    with switches_restored(), context():
        before = state_of(model=model, pixels=pixels, labels=labels)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            filters = repr(warnings.filters)
            try:
                numbers = entry.call(model, pixels, labels)
            except Exception as raised:
                error = raised
            after = state_of(model=model, pixels=pixels, labels=labels)
            if repr(warnings.filters) == filters:
                after["warning filters"] = before["warning filters"]
        changed = changes(before, after, training=entry.trains and error is None)
    return Outcome(numbers, error, changed, warned)


@cache
def _expected(key: tuple[object, ...], entry: Entry, twin: Callable[[], nn.Module], network: UserNetwork) -> Outcome:
    pixels, labels = given_to(network)
    return tried(entry, made(network.twin_classifier), pixels.float(), labels)


def expected(network: UserNetwork, entry: Entry) -> Outcome:
    """What comes of the twin; computed once for all networks that have the same."""
    assert network.twin is not None
    same = next(each for each in NETWORKS.values() if _key(each) == _key(network))
    return _expected(_key(network), entry, network.twin, same)


def _key(network: UserNetwork) -> tuple[object, ...]:
    return (network.twin, network.shape, network.classes, network.twin_classes, network.pixels, network.normalised)


def differences(found: Found, twins: Found) -> list[str]:
    """Which numbers are not those of the twin, and by how much."""
    told = []
    for name, expects in twins.items():
        got = found[name]
        if isinstance(expects, Tensor):
            if got.requires_grad:
                told.append(f"{name} hangs on a graph of the user's")
            expects, got = expects.float().numpy(), got.detach().float().numpy()
        if isinstance(expects, float) or (isinstance(expects, np.ndarray) and expects.dtype.kind == "f"):
            one, other = np.asarray(got, dtype=np.float64), np.asarray(expects, dtype=np.float64)
            if one.shape != other.shape:
                told.append(f"{name} {one.shape} for {other.shape}")
            elif not np.allclose(one, other, rtol=2e-3, atol=2e-4, equal_nan=True):
                apart = ~np.isclose(one, other, rtol=2e-3, atol=2e-4, equal_nan=True)
                example = f"{one[apart][0]:.4g} for {other[apart][0]:.4g}"
                told.append(f"{name} ({int(apart.sum())} of {apart.size} numbers, {example})")
        elif isinstance(expects, np.ndarray):
            if not np.array_equal(got, expects):
                told.append(f"{name} {np.asarray(got).tolist()} for {expects.tolist()}")
        elif got != expects:
            told.append(f"{name} {got!r} for {expects!r}")
    return told


def in_words(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@dataclass
class Report:
    """What is wrong, by entry point."""

    network: UserNetwork

    def __post_init__(self) -> None:
        self.wrong: dict[str, list[str]] = {}
        self.refusals: dict[str, str] = {}
        self.outcomes: dict[str, Outcome] = {}

    def add(self, entry: Entry | str, what: str) -> None:
        """Note that something is wrong."""
        self.wrong.setdefault(what, []).append(str(entry))

    def check_refusals(self) -> None:
        """All refusals have the same text, which says what it has to."""
        texts: dict[str, list[str]] = {}
        for name, text in self.refusals.items():
            of_n_images = re.sub(r"([(\[])\d+(?=, \d+, 8, 8)", r"\1n", text)
            texts.setdefault(of_n_images, []).append(name)
        if len(texts) > 1:
            told = "; ".join(f"{text!r} from {', '.join(names[:4])}" for text, names in texts.items())
            self.add("all", f"{len(texts)} texts: {told}")
        for text in texts:
            missing = [each for each in self.network.says if not re.search(each, text, re.IGNORECASE)]
            if missing:
                self.add("all", f"the text does not say {missing}: {text!r}")

    def finish(self) -> None:
        """Fail if anything is wrong."""
        self.check_refusals()
        if self.wrong:
            lines = [f"{', '.join(dict.fromkeys(names))}: {what}" for what, names in self.wrong.items()]
            pytest.fail(f"{self.network}:\n  " + "\n  ".join(lines), pytrace=False)


def go_through(network: UserNetwork, entries: list[Entry], *, compared: bool = True) -> Report:
    """Try a network on entry points, each with what belongs to the user fresh if the one before changed it.

    `compared`: with its twin, if it has one.
    """
    report = Report(network)
    model = made(network.classifier)
    for entry in entries:
        pixels, labels = given_to(network)
        found = report.outcomes[entry.name] = tried(entry, model, pixels, labels)
        if found.changed:
            report.add(entry, f"changed {', '.join(found.changed[:6])}{' ...' if len(found.changed) > 6 else ''}")
        if isinstance(found.error, ModelError) and network.outcome != "same":
            report.refusals[entry.name] = str(found.error)
        elif found.error is not None:
            report.add(entry, in_words(found.error))
        elif network.outcome == "refused":
            report.add(entry, f"accepted: {str(next(iter(found.numbers.values())))[:60]}")
        elif network.twin is not None and compared:
            twins = expected(network, entry)
            if twins.error is not None:
                report.add(entry, f"the twin's {in_words(twins.error)}")
            else:
                compare(report, network, entry, found, twins)
        if found.changed or found.error is not None or entry.trains:
            model = made(network.classifier)
    return report


def compare(report: Report, network: UserNetwork, entry: Entry, found: Outcome, twins: Outcome) -> None:
    """Note where a network's numbers are not those of its twin."""
    if entry is TEACH and network.twin_classes is not None:
        # the student has more classes than that of the twin
        if not np.isfinite(list(found.numbers.values())).all():
            report.add(entry, f"{found.numbers}")
        return
    if network.coarse and entry is not CLEAN:
        for name in ("success", "robust", "worst"):
            if name in found.numbers:
                one, other = (np.asarray(each.numbers[name]).mean(0) for each in (found, twins))
                if (abs(one - other) > 3 / COUNT).any():
                    report.add(entry, f"{name}: on average {one} for {other}")
        return
    verbal = ("verdict", "gravest findings") if network.finding else ()
    for told in differences(found.numbers, {k: v for k, v in twins.numbers.items() if k not in verbal}):
        report.add(entry, told)
    if found.said != twins.said:
        said = [str(each.message)[:90] for each in found.warned[:2]]
        report.add(entry, f"warns of {found.said} ({said}), the twin of {twins.said}")


def _named(*kinds: str) -> list[Any]:
    return [pytest.param(each, id=name) for name, each in NETWORKS.items() if each.kind in kinds]


def _usable(*kinds: str, every: int = 1) -> list[Any]:
    """The networks that give numbers, or every so many of them."""
    chosen = [each for each in NETWORKS.values() if each.outcome != "refused" and (not kinds or each.kind in kinds)]
    chosen = [each for each in chosen if each.kind not in ("non-finite", "no-gradient")]
    return [pytest.param(each, id=str(each)) for each in chosen[::every]]


def some(network: UserNetwork, always: list[Entry], others: list[Entry], share: int = 6) -> list[Entry]:
    """What a network goes through in a quick run: some entry points always, of the others a part, in turn."""
    place = list(NETWORKS).index(str(network))
    chosen = [*always, *(each for number, each in enumerate(others) if (number + place) % share == 0)]
    return chosen


# The numbers of the twin ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("network", _usable())
def test_attacks(network: UserNetwork) -> None:
    go_through(network, some(network, CORE, [each for each in ATTACKS if each not in CORE], 18)).finish()


@pytest.mark.parametrize("network", _usable("masks"))
def test_attacks_with_every_loss(network: UserNetwork) -> None:
    go_through(network, WITH_LOSSES).finish()


@pytest.mark.parametrize("network", _usable())
def test_measures(network: UserNetwork) -> None:
    go_through(network, some(network, [CLEAN], MEASURES[1:], 4)).finish()


@pytest.mark.parametrize("network", _usable(every=12))
def test_evaluation(network: UserNetwork) -> None:
    go_through(network, [EVALUATE]).finish()


@pytest.mark.parametrize("network", _usable(every=60))
def test_record(network: UserNetwork) -> None:
    go_through(network, [RECORD]).finish()


@pytest.mark.parametrize("network", _usable())
def test_training(network: UserNetwork) -> None:
    always, others = (FITS[:1], [*FITS[1:], TEACH]) if network.trains else ([], [TEACH])
    go_through(network, some(network, always, others, 3)).finish()


@pytest.mark.slow
@pytest.mark.parametrize("network", _usable())
def test_everything(network: UserNetwork) -> None:
    chosen = [*ATTACKS, *MEASURES, EVALUATE, *(FITS if network.trains else []), TEACH]
    go_through(network, chosen).finish()


@pytest.mark.parametrize("name", ["writes-sub-div-colour", "contiguous-lenet-view", "writes-detach", "masks-assigned"])
def test_images_as_bytes(name: str) -> None:
    """Stored as bytes, the user's images are nobody's to write into either."""
    network = NETWORKS[name]
    report = Report(network)
    for entry in (*MEASURES, EVALUATE):
        pixels, labels = given_to(network)
        stored = (pixels * 255).round().to(torch.uint8)
        found = tried(entry, network.classifier(), stored, labels)
        twins = tried(entry, network.twin_classifier(), stored.clone(), labels)
        if found.error is not None or found.changed:
            report.add(entry, f"{found.error and in_words(found.error)}, changed {found.changed}")
        else:
            for told in differences(found.numbers, twins.numbers):
                report.add(entry, told)
    report.finish()


# One clear error ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("network", _named("refused"))
def test_refused(network: UserNetwork) -> None:
    others = [each for each in ALL if each not in (*CORE, CLEAN, EVALUATE, FITS[0])]
    go_through(network, some(network, [*CORE, CLEAN, EVALUATE, FITS[0]], others, 4)).finish()


@pytest.mark.slow
@pytest.mark.parametrize("network", _named("refused"))
def test_refused_from_everywhere(network: UserNetwork) -> None:
    go_through(network, ALL).finish()


# No numbers -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("network", _named("non-finite"))
def test_logits_that_are_no_numbers(network: UserNetwork) -> None:
    """Nothing counts as fooled, nothing as right, and the evaluation says why."""
    attacks = some(network, CORE, [each for each in ATTACKS if each not in CORE], 2)
    report = go_through(network, [*attacks, *some(network, [CLEAN], MEASURES[1:]), EVALUATE])
    for entry in attacks:
        found = report.outcomes[entry.name].numbers
        if found and not (found["status"] == Status.NON_FINITE).all():
            report.add(entry, f"status {found['status'].tolist()}; expected {int(Status.NON_FINITE)} for all")
        if found and not torch.equal(found["images"], given_to(network)[0]):
            report.add(entry, "the clean images are not what it returns")
    clean, judged = report.outcomes[CLEAN.name].numbers, report.outcomes[EVALUATE.name].numbers
    if clean and clean["correct, first"].any():
        report.add(CLEAN, "takes images for right")
    if judged and (judged["clean"].any() or "non-finite" not in judged["gravest findings"]):
        report.add(EVALUATE, f"clean {judged['clean'].tolist()}, {judged['gravest findings']}")
    report.finish()


# No gradient ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("network", _named("no-gradient"))
def test_networks_without_a_gradient(network: UserNetwork) -> None:
    """Attacks that follow the gradient warn, and say of how many images; the evaluation does not trust its number."""
    report = go_through(network, some(network, GRADIENT_FREE[:1], GRADIENT_FREE[1:], 2))
    always = [each for each in FOLLOWING if each.name in ("FGSM", "APGD", "DeepFool")]
    attacks = some(network, always, [each for each in FOLLOWING if each not in always], 4)
    chosen = [*attacks, *some(network, [CLEAN], [*MEASURES[1:], TEACH]), EVALUATE]
    others = go_through(network, chosen, compared=False)
    for entry in attacks:
        found = others.outcomes[entry.name]
        if not found.numbers:
            continue
        without = int((found.numbers["status"] == Status.ZERO_GRADIENT).sum())
        if not without and entry.name in ("FGSM", "DeepFool"):
            report.add(entry, f"no image counts as without a gradient: {found.numbers['status'].tolist()}")
        said = [str(each.message) for each in found.warned if issubclass(each.category, UserWarning)]
        if without and not any(re.search(rf"\b{without}\b", text) for text in said):
            report.add(entry, f"{without} images without a gradient, and it says {said}")
    judged = others.outcomes[EVALUATE.name]
    # a network that answers the same to everything has no accuracy that a void could flatter
    if judged.numbers and judged.numbers["verdict"] not in ("not to be trusted", "untrained or mislabelled"):
        report.add(EVALUATE, f"the verdict is {judged.numbers['verdict']!r}")
    if judged.warned:
        report.add(EVALUATE, f"warns: {[str(each.message) for each in judged.warned]}; expected a finding")
    for what, entries in others.wrong.items():
        for entry in entries:
            report.add(entry, what)
    report.finish()


# Where it is called from ----------------------------------------------------------------------------------------------
Context = Callable[[], AbstractContextManager[Any]]


@contextlib.contextmanager
def only_deterministic() -> Iterator[None]:
    """The caller wants deterministic algorithms."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Scenario:
    """Where images and model were made, and where the call is made from."""

    call: Context = nullcontext
    images: Context = nullcontext
    model: Context = nullcontext
    trains: bool = True


SCENARIOS: Mapping[str, Scenario] = {
    "no_grad": Scenario(torch.no_grad),
    "set_grad_enabled(False)": Scenario(lambda: torch.set_grad_enabled(False)),
    "inference_mode": Scenario(torch.inference_mode),
    "inference_mode, images made there": Scenario(torch.inference_mode, torch.inference_mode),
    "inference_mode, model made there": Scenario(torch.inference_mode, model=torch.inference_mode, trains=False),
    "inference_mode, all made there": Scenario(
        torch.inference_mode, torch.inference_mode, torch.inference_mode, trains=False
    ),
    "images made in inference_mode": Scenario(images=torch.inference_mode),
    "model made in inference_mode": Scenario(model=torch.inference_mode, trains=False),
    "all made in inference_mode": Scenario(images=torch.inference_mode, model=torch.inference_mode, trains=False),
    "model made under no_grad": Scenario(model=torch.no_grad),
    "default dtype double": Scenario(lambda: default_dtype(torch.float64)),
    "deterministic algorithms": Scenario(only_deterministic),
}
_ALSO = (
    "writes-sub-div",
    "contiguous-lenet-view",
    "precision-double-network",
    "masks-log-mask",
    "harmless-hooks",
    "harmless-old-weight-norm",
    "harmless-lstm",
    "harmless-cache",
    "harmless-partly-training",
)


def called_from(scenario: Scenario, network: UserNetwork, entries: list[Entry]) -> Report:
    """Try a network on entry points from somewhere; the numbers are those of the twin called from nowhere special."""
    report = Report(network)
    for entry in entries:
        pixels, labels = given_to(network)
        with scenario.images():
            pixels, labels = pixels.clone(), labels.clone()
        with scenario.model():
            model = made(network.classifier)
        found = tried(entry, model, pixels, labels, scenario.call)
        twins = expected(network, entry)
        if found.changed:
            report.add(entry, f"changed {', '.join(found.changed[:6])}")
        if found.error is not None:
            report.add(entry, in_words(found.error))
        else:
            for told in differences(found.numbers, twins.numbers):
                report.add(entry, told)
    return report


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_called_from(scenario: Scenario) -> None:
    """An ordinary network, from every entry point where autograd is off for good, else from some of each kind."""
    fits = FITS if scenario.trains else []
    chosen = [*CORE, *MEASURES, *fits[:1], TEACH]
    if scenario.call is torch.inference_mode or scenario.model is torch.inference_mode:
        chosen = [*ATTACKS, *MEASURES, EVALUATE, *fits, TEACH]
    called_from(scenario, NETWORKS["harmless-nested"], chosen).finish()


@pytest.mark.parametrize("name", _ALSO)
@pytest.mark.parametrize("scenario", ["no_grad", "inference_mode", "all made in inference_mode"])
def test_other_networks_called_from(scenario: str, name: str) -> None:
    called_from(SCENARIOS[scenario], NETWORKS[name], [*CORE, *MEASURES[:2], *MEASURES[-1:]]).finish()


@pytest.mark.parametrize("entry", [*ATTACKS, *MEASURES, EVALUATE, *FITS], ids=str)
def test_called_under_autocast(entry: Entry) -> None:
    """The numbers are in whatever precision; nothing fails, and everything is as it was."""
    network = NETWORKS["harmless-nested"]
    found = tried(entry, network.classifier(), *given_to(network), lambda: torch.autocast("cpu", torch.bfloat16))
    assert found.error is None, in_words(found.error)
    assert not found.changed


@pytest.mark.parametrize(
    "layout", ["channels-last", "transposed", "expanded", "part of a larger tensor", "requires-grad"]
)
def test_layout_of_the_images(layout: str) -> None:
    """However the user's images lie in memory, they stay as they are and the numbers are the same."""
    network = NETWORKS["writes-sub-div-colour"]
    report = Report(network)
    for entry in (*ATTACKS, *MEASURES):
        pixels, labels = given_to(network)
        if layout == "channels-last":
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        elif layout == "transposed":
            pixels = pixels.transpose(2, 3).contiguous().transpose(2, 3)
        elif layout == "part of a larger tensor":
            pixels = torch.cat([pixels, pixels]).repeat(1, 2, 1, 1)[:COUNT, :3]
        elif layout == "expanded":
            pixels, labels = pixels[1:2].expand(COUNT, -1, -1, -1), labels[1:2].expand(COUNT)
        else:
            pixels.requires_grad_(True)
            pixels.grad = torch.ones_like(pixels)
        found = tried(entry, network.classifier(), pixels, labels)
        if layout == "expanded":
            twins = tried(entry, network.twin_classifier(), pixels.contiguous(), labels.contiguous())
        else:
            twins = expected(network, entry)
        if found.error is not None or found.changed:
            report.add(entry, f"{found.error and in_words(found.error)}, changed {found.changed}")
        else:
            for told in differences(found.numbers, twins.numbers):
                report.add(entry, told)
    report.finish()


# The command line -----------------------------------------------------------------------------------------------------
class Command:
    """`casemate evaluate` in this process, on a network that a function of the user's makes."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.folder, self.capsys, self.patch = folder, capsys, patch
        patch.setattr(evaluation, "attacks_for", lambda *given, **options: FEW)

    def __call__(self, network: UserNetwork, make: Callable[[], Classifier]) -> tuple[int, str, dict[str, Any]]:
        """The exit code, what it printed on one line, and its result."""
        module = types.ModuleType("the_users_own_networks")
        module.__dict__["load"] = lambda: made(make)
        self.patch.setitem(sys.modules, module.__name__, module)
        pixels, labels = given_to(network)
        np.savez(self.folder / "data.npz", images=pixels.float().numpy(), labels=labels.numpy())
        out = self.folder / "out"
        with switches_restored():
            given = [f"{module.__name__}:load", "--data", str(self.folder / "data.npz")]
            code = main(["evaluate", *given, "--eps", str(EPS), "--budget", "quick", "--force", "--out", str(out)])
        printed = self.capsys.readouterr()
        result = json.loads((out / "result.json").read_text()) if code == 0 else {}
        return code, " ".join((printed.out + printed.err).split()), result


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command line."""
    return Command(tmp_path, capsys, monkeypatch)


@pytest.mark.parametrize(
    "name",
    [
        "writes-sub-div",
        "contiguous-kernel-view",
        "masks-assigned",
    ],
)
def test_command(name: str, command: Command) -> None:
    network = NETWORKS[name]
    code, printed, result = command(network, network.classifier)
    assert code == 0, printed[-600:]
    twin = evaluate(
        network.twin_classifier(), LabelledImages(pixels=given_to(network)[0], labels=given_to(network)[1]), eps=EPS,
        attacks=FEW, force=True,
    ).as_json()  # fmt: skip
    for key in ("clean_accuracy", "robust_accuracy", "verdict"):
        assert result[key] == twin[key], key


@pytest.mark.parametrize("name", ["dict", "more-logits", "tuple", "squeeze", "fixed-batch", "grows-cat", "raises"])
def test_command_refuses(name: str, command: Command) -> None:
    """With the words of the library."""
    network = NETWORKS[f"refused-{name}"]
    code, printed, _ = command(network, network.classifier)
    assert code == 2, printed[-600:]
    found = tried(ATTACKS[0], network.classifier(), *given_to(network))
    assert isinstance(found.error, ModelError)
    plain = re.sub(r"[\s│╭╮╰╯─]+", " ", printed)
    assert re.sub(r"\s+", " ", str(found.error)) in plain


# The zoo itself -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("network", _usable("writes", "contiguous", "masks", "harmless"))
def test_the_twin_is_one(network: UserNetwork) -> None:
    """In plain PyTorch, on a copy of the images, a network says what its twin says."""
    if network.twin is None:
        return
    pixels, _ = given_to(network)
    one, other = made(network.classifier).eval(), made(network.twin_classifier).eval()
    count = len(other.classes)
    with switches_restored(), torch.no_grad():
        expects = other(pixels.clone())
        torch.testing.assert_close(one(pixels.clone())[:, :count].float(), expects, rtol=1e-4, atol=1e-4)
    assert expects.isfinite().all()


def test_the_zoo_is_large() -> None:
    assert len(NETWORKS) >= 150
