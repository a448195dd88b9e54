"""The front door: every entrance, with every kind of model, images and labels that users bring.

Each equals its well-behaved twin, a `Classifier` given everything and images in float32, or gets one clear error.
"""

import copy
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

import casemate
from casemate import (
    PGD,
    Ball,
    CasemateError,
    Classifier,
    Distillation,
    LabelledImages,
    Recipe,
    TrainConfig,
    Transfer,
    eps_curve,
    evaluate,
    evaluate_clean,
    fit,
    gradient_alignment,
    make_record,
    read_images,
    read_record,
    steps_curve,
    sweep_eps,
    sweep_steps,
    targeted_matrix,
    verify_record,
    worst_case,
    write_record,
    zero_gradients,
)
from casemate.data import as_labelled
from casemate.errors import DataError, ModelError, SettingError, ShapeError
from casemate.models import ModelMetadata, create
from conftest import tiny_images
from oracles import untyped

pytestmark = pytest.mark.usefixtures("unchecked")

SHAPE, CLASSES = (1, 8, 8), 4
NAMES = tuple(map(str, range(CLASSES)))
PIXELS = torch.randint(0, 256, (8, *SHAPE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
IMAGES = PIXELS.float() / 255
ATTACK = PGD(eps=0.1, steps=3)


def net(classes: int = CLASSES, channels: int = 1, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(256, classes),
    )
    with torch.no_grad():
        made[-1].weight.mul_(4)  # pyright: ignore[reportCallIssue]
    return made.eval()


class After(nn.Module):
    """A network that returns what a function makes of the logits."""

    def __init__(self, inner: nn.Module, after: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.after = inner, after
        self.training = inner.training

    def forward(self, images: Tensor) -> Any:
        return self.after(self.inner(images))


TWIN = Classifier(net(), input_shape=SHAPE, classes=NAMES)
with torch.no_grad():
    LABELS = TWIN(IMAGES).argmax(1)
    LABELS[0] = (LABELS[0] + 1) % CLASSES
SETTINGS = TrainConfig(epochs=1, batch_size=4)


# The entrances: what each computes, as tensors -----------------------------------------------------------------------
def _attack(model: Any, images: Any, labels: Any) -> list[Tensor]:
    found = ATTACK(model, images, labels)
    return [found.adversarial, found.prediction, found.status]


def _targeted(model: Any, images: Any, labels: Any) -> list[Tensor]:
    targets = (np.asarray(labels) + 1) % 2 if np.asarray(labels).max() < 2 else (np.asarray(labels) + 1) % CLASSES
    found = ATTACK(model, images, labels, targets=targets)
    return [found.adversarial, found.success]


def _transfer(model: Any, images: Any, labels: Any) -> list[Tensor]:
    found = Transfer(attack=ATTACK, substitute=model)(TWIN if _count(model) == CLASSES else model, images, labels)
    return [found.adversarial, found.status]


def _count(model: Any) -> int:
    with torch.no_grad():
        return Classifier(model)(IMAGES[:1]).shape[1] if not isinstance(model, Classifier) else model(IMAGES).shape[1]


def _sweep(model: Any, images: Any, labels: Any) -> list[Tensor]:
    eps = sweep_eps(ATTACK, model, images, labels, [0.0, 0.1])
    steps = sweep_steps(ATTACK, model, images, labels, [0, 2])
    assert eps.last is not None
    assert steps.last is not None
    return [eps.worst, eps.last.loss, steps.worst, steps.last.loss]


ARRAYS: Mapping[str, Callable[[Any, Any, Any], list[Tensor]]] = {
    "attack": _attack,
    "targeted attack": _targeted,
    "Transfer's substitute": _transfer,
    "sweeps": _sweep,
}
"""The entrances that take images and labels as two arguments."""


def _trained(result: Any) -> list[Tensor]:
    return [each.detach() for each in result.model.network.parameters()]


def _clean(model: Any, data: Any) -> list[Any]:
    found = evaluate_clean(model, data)
    return [found.prediction, found.loss, found.gap, np.array(len(found.classes))]


def _curve(model: Any, data: Any) -> list[Any]:
    eps, steps = eps_curve(model, ATTACK, data, [0.05, 0.1]), steps_curve(model, ATTACK, data, [1, 2])
    assert eps.last is not None
    assert steps.last is not None
    return [eps.worst, eps.last.loss, steps.worst, steps.last.loss]


def _worst(model: Any, data: Any) -> list[Any]:
    return [worst_case(model, {"pgd": ATTACK}, data, [0.05, 0.1]).every]


def _matrix(model: Any, data: Any) -> list[Any]:
    return [targeted_matrix(model, ATTACK, data).reached]


def _gradients(model: Any, data: Any) -> list[Any]:
    return [*zero_gradients(model, data).values(), gradient_alignment(model, data, 0.1)]


def _whole(model: Any, data: Any) -> list[Any]:
    found = evaluate(model, data, eps=0.1, budget="quick", attacks={"pgd": ATTACK}, norm="Linf")
    record, predicted = make_record(found, model, name="model", data="images")
    assert verify_record(record, model).holds
    checks = np.array([f"{each.check} {each.finding}" for each in found.checks])
    return [found.cascade.robust, found.cascade.adversarial, checks, record.adversarial, predicted]


def _fit(model: Any, data: Any) -> list[Any]:
    return _trained(fit(copy.deepcopy(model), data, data, SETTINGS))


def _recipe(model: Any, data: Any) -> list[Any]:
    return _trained(Recipe().fit(copy.deepcopy(model), data, data, SETTINGS))


def _distilled(model: Any, data: Any) -> list[Any]:
    student = copy.deepcopy(model)
    return _trained(fit(student, data, data, SETTINGS, objective=Distillation(teacher=model, temperature=2.0)))


SOURCES: Mapping[str, Callable[[Any, Any], list[Any]]] = {
    "evaluate_clean": _clean,
    "curves": _curve,
    "worst_case": _worst,
    "targeted_matrix": _matrix,
    "gradients": _gradients,
    "evaluate and records": _whole,
    "fit": _fit,
    "Recipe.fit": _recipe,
    "Distillation's teacher": _distilled,
}
"""The entrances that take labelled images as one argument."""


def enter(name: str, model: Any, images: Any = IMAGES, labels: Any = LABELS) -> list[Any]:
    """What an entrance computes."""
    if name in ARRAYS:
        return ARRAYS[name](model, images, labels)
    return SOURCES[name](model, (images, labels))


def assert_same(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


ENTRANCES = [
    pytest.param(name, marks=pytest.mark.integration if name == "evaluate and records" else ())
    for name in (*ARRAYS, *SOURCES)
]
entrances = pytest.mark.parametrize("entrance", ENTRANCES)


# Models --------------------------------------------------------------------------------------------------------------
class ModelOutput(dict[str, Any]):
    """Like Hugging Face's: a mapping whose keys are attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class Bag:
    """An object with attributes."""

    def __init__(self, **parts: Any) -> None:
        vars(self).update(parts)


Named = namedtuple("Named", ("logits", "auxiliary"))
MODELS: Mapping[str, Callable[[], Any]] = {
    "a bare module": net,
    "Classifier(net)": lambda: Classifier(net()),
    "classes=4": lambda: Classifier(net(), classes=4),
    "NumPy's numbers": lambda: Classifier(net(), classes=untyped(np.int64(4)), input_shape=untyped(np.array(SHAPE))),
    "names in a list": lambda: Classifier(net(), classes=["a", "b", "c", "d"], input_shape=list(SHAPE)),
    "a one-tuple": lambda: After(net(), lambda z: (z,)),
    "a mapping": lambda: After(net(), lambda z: {"loss": None, "logits": z}),
    "a ModelOutput": lambda: After(net(), lambda z: ModelOutput(logits=z, hidden_states=(z,))),
    "an object with logits": lambda: After(net(), lambda z: Bag(logits=z)),
    "a named tuple": lambda: After(net(), lambda z: Named(z, -z)),
    "output=1": lambda: Classifier(After(net(), lambda z: (-z, z)), output=1),
    "output=-1": lambda: Classifier(After(net(), lambda z: [-z, z]), output=-1),
    "output=key": lambda: Classifier(After(net(), lambda z: {"a": -z, "b": z}), output="b"),
    "output=attribute": lambda: Classifier(After(net(), lambda z: Bag(scores=z, logits=-z)), output="scores"),
    "output=function": lambda: Classifier(After(net(), lambda z: {"deep": [z]}), output=lambda o: o["deep"][0]),
    "output= of a tensor": lambda: Classifier(net(), output=0),
}


@entrances
@pytest.mark.parametrize("kind", MODELS)
def test_every_model_at_every_entrance(kind: str, entrance: str) -> None:
    assert_same(enter(entrance, MODELS[kind]()), enter(entrance, TWIN))


@entrances
@pytest.mark.parametrize("column", [True, False], ids=["(n, 1)", "(n,)"])
@pytest.mark.parametrize("known", [True, False], ids=["named", "inferred"])
def test_one_logit_is_two_classes(entrance: str, column: bool, known: bool) -> None:
    inner = net(1)
    network = inner if column else After(inner, lambda z: z.squeeze(1))
    settings: dict[str, Any] = {"input_shape": SHAPE, "classes": ("0", "1")}
    twin = Classifier(After(inner, lambda z: torch.cat([torch.zeros_like(z), z], 1)), **settings)
    with torch.no_grad():
        labels = twin(IMAGES).argmax(1)
    labels[0] = 1 - labels[0]
    model = Classifier(network, **settings) if known else network
    assert_same(enter(entrance, model, labels=labels), enter(entrance, twin, labels=labels))


def test_the_loss_of_one_logit_is_the_binary_cross_entropy() -> None:
    inner, labels = net(1), torch.arange(8) % 2
    with torch.no_grad():
        wanted = F.binary_cross_entropy_with_logits(inner(IMAGES).squeeze(1), labels.float(), reduction="none")
    np.testing.assert_allclose(evaluate_clean(inner, IMAGES, labels).loss, wanted, rtol=1e-5)


@pytest.mark.parametrize("after", [torch.sigmoid, lambda z: torch.sigmoid(z).squeeze(1)], ids=["(n, 1)", "(n,)"])
def test_one_probability_is_refused(after: Any) -> None:
    """Where its sigmoid cannot be taken off, since what is before it is a probability too."""
    twice = After(After(net(1), torch.sigmoid), after)
    for call in (lambda m: ATTACK(m, IMAGES, LABELS % 2), lambda m: evaluate_clean(m, IMAGES, LABELS % 2)):
        with pytest.raises(ModelError, match=r"result of a sigmoid.*Leave the sigmoid out"):
            call(twice)
    model = Classifier(After(net(1), after), output=lambda p: torch.logit(p, 1e-6))
    twin = evaluate_clean(net(1), IMAGES, LABELS % 2)
    np.testing.assert_array_equal(evaluate_clean(model, IMAGES, LABELS % 2).prediction, twin.prediction)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (0.5, 0.25),
        ([0.5] * 3, (0.25,) * 3),
        (np.float32(0.5), np.array([0.25] * 3)),
        (torch.full((3,), 0.5), 0.25),
        (torch.tensor(0.5, dtype=torch.float64), 0.25),
    ],
    ids=["numbers", "sequences", "NumPy", "a tensor and a number", "a tensor without dimensions"],
)
@pytest.mark.parametrize("known", [True, False])
def test_mean_and_std(mean: Any, std: Any, known: bool) -> None:
    images = torch.rand(4, 3, 8, 8)
    shape: dict[str, Any] = {"input_shape": (3, 8, 8)} if known else {}
    twin = Classifier(net(channels=3), input_shape=(3, 8, 8), classes=4, mean=(0.5,) * 3, std=(0.25,) * 3)
    model = Classifier(net(channels=3), mean=mean, std=std, **shape)
    with torch.no_grad():
        assert torch.equal(model(images), twin(images))


def test_what_is_not_known_yet_says_what_to_write() -> None:
    model = Classifier(net())
    with pytest.raises(ModelError, match=r"write Classifier\(network, input_shape=\(channels, height, width\)\)"):
        _ = model.input_shape
    with pytest.raises(ModelError, match=r"write Classifier\(network, classes=10\)"):
        _ = model.classes
    for failing in (IMAGES.flatten(1), torch.rand(2, 3, 8, 8)):
        with pytest.raises(CasemateError):
            ATTACK(model, failing, LABELS[: len(failing)])
    with torch.no_grad():
        model(IMAGES)
    assert (model.input_shape, model.classes) == (SHAPE, NAMES)
    assert copy.deepcopy(model).classes == NAMES


SAID: Mapping[str, tuple[Callable[[], Any], str]] = {
    "a function": (lambda: lambda x: x, "the model is a function; expected an object of a torch.nn.Module"),
    "a class": (lambda: nn.Flatten, "the model is the class Flatten; expected an object"),
    "None": (lambda: None, "the model is a NoneType; expected"),
    "a tuple of two": (
        lambda: After(net(), lambda z: (z, z.sum())),
        r"a tuple of 2: \(1, 4\), \(\) .*Classifier\(network, output=0 or output=1\)",
    ),
    "a mapping without logits": (
        lambda: After(net(), lambda z: {"a": z, "b": (z,)}),
        r"a dict with 'a' \(1, 4\), 'b' .*Classifier\(network, output='a'\)",
    ),
    "an object without logits": (
        lambda: After(net(), lambda z: Bag(scores=z)),
        r"a Bag with 'scores' \(1, 4\).*output='scores'",
    ),
    "a wrong index": (
        lambda: Classifier(After(net(), lambda z: (z, z)), output=2),
        "output=2, but the network returns a tuple of 2.*no such part",
    ),
    "a wrong key": (
        lambda: Classifier(After(net(), lambda z: {"a": z}), output="b"),
        "output='b', but the network returns a dict with 'a'",
    ),
    "a wrong attribute": (
        lambda: Classifier(After(net(), lambda z: Bag(a=z)), output="b"),
        "output='b', but the network returns a Bag with 'a'",
    ),
    "a function that fails": (
        lambda: Classifier(After(net(), lambda z: {"a": z}), output=lambda o: o["b"]),
        "the function given as output= fails on a dict with 'a' .*KeyError",
    ),
    "nothing": (lambda: After(net(), lambda _: None), "the model returns None .*end in a return"),
    "an array": (lambda: After(net(), lambda z: z.detach().numpy()), "NumPy array.*need its gradient"),
    "four of one logit": (
        lambda: Classifier(net(1), classes=4),
        r"shape \(1, 1\) for 1 image; .*One logit per image stands for two classes",
    ),
    "two of four": (lambda: Classifier(net(), classes=2), "Name as many classes as there are logits"),
    "squeezed": (lambda: After(net(), lambda z: z.squeeze()), r"shape \(4,\) for 1 image.*squeeze"),
    "three channels": (lambda: net(channels=3), "the model fails on a batch of shape.*3 channels"),
    "mean of three": (lambda: Classifier(net(channels=3), mean=(0.5,) * 3, std=0.5), "images of 1 channels, but mean"),
    "fixed batch": (lambda: After(net(), lambda z: z.view(8, -1)), "number of images in every call"),
}


@pytest.mark.parametrize("what", SAID)
def test_one_clear_error_at_every_entrance(what: str) -> None:
    make, words = SAID[what]
    said = set()
    for name in (*ARRAYS, *SOURCES):
        if name in ("Transfer's substitute", "Distillation's teacher", "Recipe.fit"):
            continue  # which have a second model too
        with pytest.raises(CasemateError, match=words) as caught:
            enter(name, make(), labels=LABELS % 2 if what == "two of four" else LABELS)
        said.add(str(caught.value))
    assert len(said) == 1
    with pytest.raises(CasemateError):
        Transfer(attack=ATTACK, substitute=make())(TWIN, IMAGES, LABELS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"classes": 1}, "1 classes; expected at least 2"),
        ({"classes": "cat"}, "classes = 'cat'; expected their number, or the names"),
        ({"classes": {0: "cat", 1: "dog"}}, "expected their number, or the names"),
        ({"classes": 2.5}, "classes = 2.5; expected their number"),
        ({"input_shape": (8, 8)}, r"expected \(channels, height, width\)"),
        ({"input_shape": 8}, r"input_shape = 8; expected \(channels, height, width\)"),
        ({"bounds": (0, 1, 2)}, "expected the smallest and the largest value"),
        ({"bounds": 255}, "bounds 255; expected the smallest and the largest value"),
        ({"mean": 0.5}, "only one of mean and std"),
        ({"mean": "0.5", "std": 1}, "expected a number each, or one per channel"),
        ({"mean": (0.5, 0.5, 0.5), "std": (1, 1)}, "expected 3 numbers each"),
        ({"mean": 0.5, "std": 0}, "expected positive numbers"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        Classifier(net(), **settings)


def test_pixels_out_of_range_say_what_to_write() -> None:
    normalised = (IMAGES - 0.5) / 0.25
    for name in (*ARRAYS, "evaluate_clean", "curves", "worst_case", "targeted_matrix", "gradients"):
        with pytest.raises(ShapeError, match=r"Classifier\(network, mean=\.\.\., std=\.\.\.\).*give it as bounds="):
            enter(name, net(), normalised)
    ATTACK(Classifier(net(), bounds=(-2, 2)), normalised, LABELS)


OTHER_BOUNDS = {
    (0, 255): r"images\.float\(\), or",
    (-1, 1): r"images\.float\(\) / 255 \* 2 - 1, or",
    (0.5, 1): r"images\.float\(\) / 255 \* 0\.5 \+ 0\.5, or",
}


@pytest.mark.parametrize("entrance", [each for each in (*ARRAYS, *SOURCES) if each != "Transfer's substitute"])
@pytest.mark.parametrize("bounds", OTHER_BOUNDS)
def test_bytes_need_a_model_of_pixels_within_0_and_1(entrance: str, bounds: tuple[float, float]) -> None:
    model = Classifier(net(), input_shape=SHAPE, classes=NAMES, bounds=bounds)
    with pytest.raises(ShapeError, match=rf"bytes \(uint8\), which stand for .*bounds are .*{OTHER_BOUNDS[bounds]}"):
        enter(entrance, model, PIXELS, LABELS)


def test_the_module_is_as_it_was() -> None:
    model = net().train()
    model[1].eval()  # pyright: ignore[reportIndexIssue]
    model[0].weight.requires_grad_(False)  # pyright: ignore[reportIndexIssue]
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    model[0].weight.grad = torch.ones_like(model[0].weight)  # pyright: ignore[reportIndexIssue]
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    flags = [each.requires_grad for each in model.parameters()]
    attributes = [dict(vars(module)) for module in model.modules()]
    images, labels = IMAGES.clone(), LABELS.clone()
    ATTACK(model, images, labels)
    evaluate_clean(model, images, labels)
    evaluate(model, images, labels, eps=0.1, budget="quick", attacks={"pgd": ATTACK})
    assert calls
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert flags == [each.requires_grad for each in model.parameters()]
    for module, own in zip(model.modules(), attributes, strict=True):
        assert list(vars(module)) == list(own)
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))  # pyright: ignore[reportIndexIssue]
    assert torch.equal(images, IMAGES)
    assert torch.equal(labels, LABELS)


def test_a_network_in_evaluation_mode_is_not_said_to_be_in_training_mode() -> None:
    for model, wanted in ((net(), False), (net().train(), True), (Classifier(net()), False)):
        found = evaluate(model, IMAGES, LABELS, eps=0.1, budget="quick", attacks={"pgd": ATTACK})
        assert ("training-mode" in [finding.check for finding in found.findings]) == wanted


# Images and labels ---------------------------------------------------------------------------------------------------
def _read_only() -> np.ndarray:
    array = IMAGES.numpy().copy()
    array.flags.writeable = False
    return array


PAIRS: Mapping[str, Callable[[], tuple[Any, Any]]] = {
    "arrays": lambda: (IMAGES.numpy(), LABELS.numpy()),
    "float64 and int32": lambda: (IMAGES.numpy().astype(np.float64), LABELS.numpy().astype(np.int32)),
    "float64 tensor": lambda: (IMAGES.double(), LABELS.to(torch.uint8)),
    "bytes": lambda: (PIXELS, LABELS),
    "an array of bytes and a list": lambda: (PIXELS.numpy(), LABELS.tolist()),
    "read-only and big-endian": lambda: (_read_only(), LABELS.numpy().astype(">i8")),
    "reversed": lambda: (IMAGES.numpy()[::-1].copy()[::-1], LABELS.numpy()[::-1].copy()[::-1]),
    "lists of tensors": lambda: (list(IMAGES), list(LABELS)),
    "a list of arrays and a tuple": lambda: (list(IMAGES.numpy()), tuple(LABELS.numpy())),
    "channels last in memory": lambda: (IMAGES.contiguous(memory_format=torch.channels_last), LABELS),
    "with a gradient": lambda: (IMAGES.clone().requires_grad_(True), LABELS),
}


@entrances
@pytest.mark.parametrize("kind", PAIRS)
def test_every_kind_of_images_and_labels_at_every_entrance(kind: str, entrance: str) -> None:
    images, labels = PAIRS[kind]()
    assert_same(enter(entrance, TWIN, images, labels), enter(entrance, TWIN))


class Pairs(TorchDataset[Any]):
    """A data set of images as arrays, and whole numbers."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        return IMAGES[place].numpy(), int(LABELS[place])


class Streamed(IterableDataset[Any]):
    """A data set without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(IMAGES, LABELS, strict=True))


DATA: Mapping[str, Callable[[], Any]] = {
    "LabelledImages": lambda: LabelledImages(pixels=IMAGES, labels=LABELS),
    "LabelledImages of arrays": lambda: LabelledImages(pixels=IMAGES.numpy(), labels=LABELS.numpy()),  # type: ignore[arg-type]
    "a pair": lambda: (IMAGES, LABELS),
    "a data set of tensors": lambda: TensorDataset(IMAGES, LABELS),
    "a data set of arrays": Pairs,
    "a data set without length": Streamed,
    "a loader": lambda: DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3),
    "a loader of arrays": lambda: DataLoader(Pairs(), batch_size=3),
    "a loader of a stream": lambda: DataLoader(Streamed(), batch_size=3),
    "a list of batches": lambda: list(DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4)),
    "a generator": lambda: (tuple(batch) for batch in DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3)),
}


@pytest.mark.parametrize("kind", DATA)
def test_every_source_of_images(kind: str) -> None:
    given, state = DATA[kind](), torch.get_rng_state()
    found = as_labelled(given)
    assert torch.equal(found.pixels, IMAGES)
    assert torch.equal(found.labels, LABELS)
    assert torch.equal(state, torch.get_rng_state())
    assert_same(_clean(TWIN, DATA[kind]()), _clean(TWIN, (IMAGES, LABELS)))


def test_images_and_labels_as_two_arguments() -> None:
    wanted = _clean(TWIN, LabelledImages(pixels=IMAGES, labels=LABELS))
    assert_same([evaluate_clean(TWIN, IMAGES, LABELS).prediction], wanted[:1])
    assert_same([targeted_matrix(TWIN, ATTACK, IMAGES, LABELS).reached], _matrix(TWIN, (IMAGES, LABELS)))
    found = eps_curve(TWIN, ATTACK, IMAGES, [0.1], labels=LABELS)
    assert_same([found.worst[:, 0]], [_curve(TWIN, (IMAGES, LABELS))[0][:, 1]])
    assert_same([worst_case(TWIN, {"pgd": ATTACK}, IMAGES, [0.1], labels=LABELS).every], [found.worst])
    whole = evaluate(net(), IMAGES.numpy(), LABELS.tolist(), eps="0.1", budget="quick", attacks={"pgd": ATTACK})
    assert_same([whole.cascade.robust[:, 0]], [found.worst[:, 0]])


REFUSED: Mapping[str, tuple[Callable[[], Any], str]] = {
    "images alone": (lambda: IMAGES, "images without labels; give the true classes too"),
    "None": (lambda: None, "None as images; expected images and labels as tensors"),
    "a number": (lambda: 3, "an int as images; expected"),
    "a text": (lambda: "images", "element 0 of a str is a str; expected"),
    "a whole data set": (lambda: casemate.Dataset, "expected"),
    "three": (lambda: TensorDataset(IMAGES, LABELS, LABELS), r"element 0 of a TensorDataset is a tuple of 3; expected"),
    "dictionaries": (lambda: [{"image": IMAGES}], "element 0 of a list of 1 is a dict; expected"),
    "pictures": (lambda: [(object(), 1)], r"is an object; expected a tensor: .*ToTensor\(\)"),
    "an empty loader": (lambda: DataLoader(untyped([]), batch_size=1), "a DataLoader has no images"),
    "two shapes": (
        lambda: [(IMAGES, LABELS), (IMAGES[:, :, :4], LABELS)],
        r"images of shape \(1, 8, 8\) .*and of shape \(1, 4, 8\) .*resize them",
    ),
    "fewer labels": (lambda: (IMAGES, LABELS[:3]), r"8 images, but labels of shape \(3,\)"),
    "one-hot": (lambda: (IMAGES, F.one_hot(LABELS, 4)), r"labels\.argmax\(1\)"),
    "a column": (lambda: (IMAGES, LABELS[:, None]), r"labels\.squeeze\(1\)"),
    "fractions": (lambda: (IMAGES, LABELS.float()), r"labels\.long\(\)"),
    "truth values": (lambda: (IMAGES, LABELS > 1), "labels of type torch.bool"),
    "words": (lambda: (IMAGES, np.array(["a"] * 8)), "labels are texts; expected the numbers of the classes"),
    "one image": (lambda: (IMAGES[0], LABELS[:1]), r"images\[None\] for a single image"),
    "whole numbers": (lambda: (PIXELS.int(), LABELS), "images of type torch.int32"),
    "channels last": (lambda: (IMAGES.permute(0, 2, 3, 1), LABELS), r"images\.permute\(0, 3, 1, 2\)"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("known", [True, False], ids=["Classifier", "module"])
def test_images_that_are_refused(what: str, known: bool) -> None:
    make, words = REFUSED[what]
    said = set()
    for name in SOURCES:
        if name == "Distillation's teacher" or (what == "channels last" and name in ("fit", "Recipe.fit")):
            continue
        with pytest.raises(CasemateError, match=words) as caught:
            SOURCES[name](copy.deepcopy(TWIN) if known else net(), make())
        said.add(str(caught.value).replace("(2, 8, 8, 1)", "(8, 8, 8, 1)"))  # not all look at all images at once
    assert len(said) == 1


def test_labels_beside_what_has_its_own() -> None:
    for given in (LabelledImages(pixels=IMAGES, labels=LABELS), TensorDataset(IMAGES, LABELS)):
        with pytest.raises(DataError, match="which has its own"):
            evaluate_clean(TWIN, given, LABELS)
    whole = casemate.Dataset(
        name="d", title="Digits", classes=NAMES, train=tiny_images(3), test=tiny_images(3), origin="here"
    )
    with pytest.raises(DataError, match=r"the data set Digits as a whole; give its images, such as data\.test"):
        evaluate_clean(TWIN, untyped(whole))


def test_an_attack_refuses_labels_and_targets_alike() -> None:
    for bad, words in ((LABELS.float(), "long"), (F.one_hot(LABELS), "argmax"), (LABELS[:3], "expected 8 int64")):
        for call in (lambda b: ATTACK(TWIN, IMAGES, b), lambda b: ATTACK(TWIN, IMAGES, LABELS, targets=b)):
            with pytest.raises((ShapeError, DataError), match=words):
                call(bad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_networks_of_other_precisions(dtype: torch.dtype) -> None:
    for images in (IMAGES, IMAGES.double()):
        found = ATTACK(net().to(dtype), images, LABELS)
        assert found.adversarial.dtype == (torch.float64 if dtype == images.dtype == torch.float64 else torch.float32)
        assert (found.norm <= 0.1 + 1e-6).all()


# Settings ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("norm", ["Linf", "LINF", "linf", "L2", "l1"])
def test_norms_in_any_case(norm: Any) -> None:
    assert PGD(eps=0.1, norm=norm).norm == Ball(eps=0.1, norm=norm).norm == norm.lower()
    attacks = {"pgd": PGD(eps=0.1, steps=1, norm=norm)}
    assert evaluate(TWIN, IMAGES, LABELS, eps=0.1, norm=norm, budget="quick", attacks=attacks).norm == norm.lower()


def test_an_unknown_norm() -> None:
    for call in (lambda: PGD(eps=0.1, norm="l3"), lambda: evaluate(TWIN, IMAGES, LABELS, eps=0.1, norm="l3")):  # type: ignore[arg-type]
        with pytest.raises(SettingError, match="norm = 'l3'; expected linf, l2, l1 or l0"):
            call()


@pytest.mark.parametrize("eps", [[0.1, 0.2], (0.1, 0.2), np.array([0.1, 0.2]), torch.tensor([0.1, 0.2])])
def test_one_eps_per_attack(eps: Any) -> None:
    with pytest.raises(SettingError, match=r"which is 2 numbers; expected one eps per attack: .*eps_curve"):
        PGD(eps=eps)
    found = evaluate(TWIN, IMAGES, LABELS, eps=eps, budget="quick", attacks={"pgd": ATTACK})
    assert found.values == pytest.approx((0.1, 0.2))


@pytest.mark.parametrize("eps", [np.float64(0.125), np.float32(0.125), torch.tensor(0.125), "0.125", "1/8", "32/256"])
def test_one_eps_of_any_kind(eps: Any) -> None:
    assert PGD(eps=eps).eps == 0.125
    assert evaluate(TWIN, IMAGES, LABELS, eps=eps, budget="quick", attacks={"pgd": ATTACK}).values == (0.125,)


def test_paths_as_text(tmp_path: Path) -> None:
    model, text = create("linear", input_shape=SHAPE, classes=NAMES), str(tmp_path / "model.safetensors")
    casemate.save(model, text, ModelMetadata(architecture="linear", dataset="own"))
    assert torch.equal(casemate.load(text)[0](IMAGES), model.eval()(IMAGES))
    np.savez(tmp_path / "own.npz", images=PIXELS.numpy(), labels=LABELS.numpy())
    assert torch.equal(read_images(str(tmp_path / "own.npz")).pixels, PIXELS)
    found = evaluate(model, IMAGES, LABELS, eps=0.1, budget="quick", attacks={"pgd": ATTACK})
    record, _ = make_record(found, model, name="model", data="own")
    write_record(record, str(tmp_path / "record"))
    assert torch.equal(read_record(str(tmp_path / "record" / "record.json")).adversarial, record.adversarial)
    fit(model, tiny_images(6), tiny_images(3), SETTINGS, checkpoint=str(tmp_path / "checkpoint.safetensors"))
    assert (tmp_path / "checkpoint.safetensors").exists()


def test_a_saved_model_keeps_what_it_was_given(tmp_path: Path) -> None:
    description = ModelMetadata(architecture="linear", dataset="own")
    network = create("linear", input_shape=SHAPE, classes=NAMES).network
    for settings in ({"mean": 0.5, "std": 0.25}, {"output": "logits"}, {"bounds": (0, 255)}):
        model = Classifier(network, **settings).eval()  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="write Classifier"):
            casemate.save(model, tmp_path / "model.safetensors", description)
        images = IMAGES * model.bounds[1]
        wanted = model(images)
        loaded, _ = casemate.load(casemate.save(model, tmp_path / "model.safetensors", description))
        assert torch.equal(loaded(images), wanted)
        assert (loaded.output, loaded.bounds) == (model.output, model.bounds)
    with pytest.raises(ModelError, match="a function as output= cannot be saved"):
        casemate.save(Classifier(network, output=lambda z: z), tmp_path / "other.safetensors", description)


def test_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ATTACK(net(), _read_only(), LABELS.tolist())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@entrances
def test_devices_are_moved_to(entrance: str) -> None:
    model = net().cuda()
    for found, wanted in zip(enter(entrance, model), enter(entrance, net()), strict=True):
        assert np.shape(np.asarray(torch.as_tensor(found).cpu())) == np.shape(np.asarray(wanted))


def test_a_module_of_torch_export_is_as_its_network() -> None:
    """It has one mode, and refuses `eval`."""
    network = net()
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(network, (IMAGES[:2],), dynamic_shapes=({0: batch},)).module()
    with pytest.raises(NotImplementedError):
        exported.eval()
    assert_same(
        _whole(exported, LabelledImages(pixels=IMAGES, labels=LABELS)),
        _whole(network, LabelledImages(pixels=IMAGES, labels=LABELS)),
    )
