"""The softmax or sigmoid at the end of a network is taken off, and its predictions stay those of the network."""

import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from casemate import (
    PGD,
    Classifier,
    TrainConfig,
    evaluate,
    evaluate_clean,
    fit,
    make_record,
    verify_record,
)
from casemate.errors import CasemateWarning, EvaluationError
from casemate.evaluation import Evaluation, Severity
from casemate.models.softmax import logits_before_ending
from test_front_door import ATTACK, IMAGES, LABELS, After, ModelOutput, assert_same, enter, entrances, net

pytestmark = pytest.mark.usefixtures("unchecked")

PIXELS = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(3))


class OnnxSoftmax(nn.Module):
    """As a converter from ONNX writes softmax of version 11: over all dimensions from one on, flattened."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.softmax(torch.flatten(z, start_dim=1), dim=-1).view(z.shape)


def graph(softmax: nn.Module) -> nn.Module:
    """A graph module, written by hand, whose last node calls a module."""
    made = fx.Graph()
    images = made.placeholder("images")
    logits = made.call_module("net", (images,))
    made.output(made.call_module("softmax", (logits,)))
    return fx.GraphModule({"net": net(), "softmax": softmax}, made).eval()


NETWORKS: Mapping[str, Callable[[], Any]] = {
    "nn.Softmax last": lambda: nn.Sequential(*net().children(), nn.Softmax(dim=-1)).eval(),
    "nn.Softmax around": lambda: nn.Sequential(net(), nn.Softmax(1)).eval(),
    "F.softmax": lambda: After(net(), lambda z: F.softmax(z, dim=1)),
    "a ModelOutput": lambda: After(net(), lambda z: ModelOutput(logits=z.softmax(-1), hidden_states=(z,))),
    "output=1": lambda: Classifier(After(net(), lambda z: (z, torch.softmax(z, 1))), output=1),
    "a traced graph": lambda: fx.symbolic_trace(nn.Sequential(net(), nn.Softmax(1))).eval(),
    "a converted graph": lambda: graph(OnnxSoftmax()),
    "sigmoids": lambda: After(net(), torch.sigmoid),
}
"""Networks that end in a softmax, or in a sigmoid for each class, behind the logits of `net`."""


@entrances
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_entrance_finds_the_logits(kind: str, entrance: str) -> None:
    if entrance != "evaluate and records":  # which notes it, and is compared below
        assert_same(enter(entrance, NETWORKS[kind]()), enter(entrance, net()))


@entrances
@pytest.mark.parametrize("after", [torch.sigmoid, lambda z: torch.sigmoid(z).squeeze(1)], ids=["(n, 1)", "(n,)"])
def test_every_entrance_finds_the_one_logit(after: Callable[[Tensor], Tensor], entrance: str) -> None:
    labels = evaluate_clean(net(1), IMAGES, LABELS % 2).prediction
    labels[0] = 1 - labels[0]
    if entrance != "evaluate and records":
        found, twin = After(net(1), after), net(1)
        assert_same(enter(entrance, found, labels=labels), enter(entrance, twin, labels=labels))


# What is seen, and what is not ----------------------------------------------------------------------------------------
SEEN: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Tensor.softmax": lambda z: z.softmax(1),
    "by keyword": lambda z: torch.softmax(input=z, dim=1),
    "float64": lambda z: F.softmax(z, 1, dtype=torch.float64),
    "nn.Softmax2d and view": lambda z: nn.Softmax2d()(z[:, :, None, None]).view(len(z), -1),
    "over maps, flattened": lambda z: z[:, :, None, None].softmax(1).flatten(1),
    "over maps, indexed": lambda z: z[:, :, None, None].softmax(1)[:, :, 0, 0],
    "permuted": lambda z: z[:, None].softmax(2).permute(0, 2, 1).squeeze(2),
    "dropout that is off": lambda z: F.dropout(z.softmax(1), 0.5, training=False),
    "of logits out of order in memory": lambda z: z.t().contiguous().t().softmax(1).view(-1).view(len(z), -1),
    "copied": lambda z: z.softmax(1).clone().contiguous(),
    "an operator": lambda z: torch.ops.aten.softmax.int(z, 1),
    "its kernel": lambda z: torch.ops.aten._softmax.default(z, 1, False),
    "another softmax before it": lambda z: (z + 0 * z.softmax(1)).softmax(1),
    "another softmax after it": lambda z: (z.softmax(1), (2 * z).softmax(1))[0],
}


@pytest.mark.parametrize("after", SEEN.values(), ids=SEEN)
def test_a_softmax_is_seen_however_it_is_written(after: Callable[[Tensor], Tensor]) -> None:
    model = Classifier(After(net(), after))
    with torch.no_grad():
        assert torch.equal(model(IMAGES), net()(IMAGES))
    assert model.ending == "softmax"


def test_a_temperature_stays_in_the_logits() -> None:
    model = Classifier(After(net(), lambda z: torch.softmax(z / 5, 1)))
    with torch.no_grad():
        assert torch.equal(model(IMAGES), net()(IMAGES) / 5)


def _written_into(z: Tensor) -> Tensor:
    p = z.softmax(1)
    p[p < 0.1] = 0
    return p


def _overwritten(z: Tensor) -> Tensor:
    p = z.softmax(1)
    z.zero_()
    return p


UNSEEN: Mapping[str, Callable[[Tensor], Tensor]] = {
    "no softmax": lambda z: z,
    "a logarithm of one": lambda z: z.log_softmax(1),
    "the mean of two": lambda z: (z.softmax(1) + (2 * z).softmax(1)) / 2,
    "a softmax of one": lambda z: z.softmax(1).softmax(1),
    "a sigmoid of a softmax": lambda z: z.softmax(1).sigmoid(),
    "over the batch": lambda z: z.softmax(0),
    "over half of the classes": lambda z: z.view(-1, 2, 2).softmax(2).flatten(1),
    "over one class": lambda z: z[:, :1].softmax(1),
    "written into": _written_into,
    "its input written into": _overwritten,
    "two numbers from a sigmoid": lambda z: torch.cat([1 - z[:, :1].sigmoid(), z[:, :1].sigmoid()], 1),
}


@pytest.mark.parametrize("after", UNSEEN.values(), ids=UNSEEN)
def test_what_is_no_softmax_of_logits_stays(after: Callable[[Tensor], Tensor]) -> None:
    model, plain = Classifier(After(net(), after)), After(net(), after)
    with torch.no_grad():
        found, expected = model(IMAGES), plain(IMAGES)
    assert model.ending is None
    assert torch.equal(found[:, -expected.shape[1] :], expected)


def test_a_softmax_in_torchscript_or_a_compiled_module_stays() -> None:
    def softmaxed() -> nn.Module:
        return nn.Sequential(net(), nn.Softmax(1)).eval()

    in_place = softmaxed()
    in_place.compile(backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.trace(softmaxed(), IMAGES)
    for network in (scripted, in_place, torch.compile(softmaxed(), backend="eager")):
        model = Classifier(network)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            assert torch.allclose(model(IMAGES), softmaxed()(IMAGES))
        assert model.ending is None


def test_what_the_user_makes_of_a_probability_is_left_alone() -> None:
    model = Classifier(After(net(1), torch.sigmoid), output=lambda p: torch.logit(p, 1e-6))
    with torch.no_grad():
        assert torch.allclose(model(IMAGES)[:, 1:], net(1)(IMAGES), atol=1e-4)
    assert model.ending is None


# Predictions ----------------------------------------------------------------------------------------------------------
class Given(nn.Module):
    """A network whose logits are pixels: those of the first row."""

    def __init__(self, classes: int, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.classes, self.after = classes, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(images[:, 0, 0, : self.classes])


def near_ties(count: int, classes: int) -> Iterator[Tensor]:
    """Logits of which many are so near that their probabilities are equal in float32, or that saturate."""
    draw = torch.Generator().manual_seed(0)
    for scale, around in ((1e-9, 0.0), (1e-8, 0.3), (1e-7, 1.0), (3e-6, 20.0), (300.0, 0.0)):
        yield around + scale * torch.randint(-9, 10, (count, classes), generator=draw).float()


@pytest.mark.parametrize("logits", list(near_ties(500, 4)), ids=["1e-9", "1e-8", "1e-7", "3e-6", "300"])
@pytest.mark.parametrize("double", [False, True])
def test_the_network_itself_decides_between_probabilities_that_tie(logits: Tensor, double: bool) -> None:
    z = logits.double() if double else logits
    made = logits_before_ending(lambda: z.softmax(1))
    assert torch.equal(made.argmax(1), z.softmax(1).argmax(1))
    assert torch.allclose(made, z, rtol=1e-5, atol=1e-7)
    made = logits_before_ending(lambda: z[:, :1].sigmoid())
    assert torch.equal(made > 0, z[:, :1].sigmoid() > 0.5)


def test_there_are_ties_to_decide() -> None:
    decided = [(z.argmax(1) != z.softmax(1).argmax(1)).sum() for z in near_ties(500, 4)]
    assert sum(decided) > 300
    assert sum(((z > 0) != (z.sigmoid() > 0.5)).sum() for z in near_ties(500, 4)) > 300


def test_a_tie_is_decided_in_an_evaluation() -> None:
    images = torch.zeros(6, 1, 8, 8)
    images[:, 0, 0, 1] = torch.tensor([1e-9, 2e-9, 1e-3, 1e-9, 0.5, 1.0])
    network = Given(3, lambda z: z.softmax(1))
    predicted = network(images).argmax(1)
    assert predicted.tolist() == [0, 0, 1, 0, 1, 1]
    assert evaluate_clean(network, images, predicted).accuracy.value == 1.0
    other = Given(3, lambda z: z)
    assert evaluate_clean(other, images, predicted).accuracy.value == 0.5


@pytest.mark.parametrize("at", [0.0, 1e-9], ids=["as predicted", "where a tie is decided"])
def test_the_gradient_is_that_of_the_logits(at: float) -> None:
    images = torch.zeros(2, 1, 8, 8)
    images[:, 0, 0, 1] = at
    images.requires_grad_(True)
    weights = torch.tensor([1.0, -2.0, 3.0])
    (mine,) = torch.autograd.grad((Classifier(Given(3, lambda z: z.softmax(1)).eval())(images) * weights).sum(), images)
    (its,) = torch.autograd.grad((images[:, 0, 0, :3] * weights).sum(), images)
    assert torch.equal(mine, its)


def test_what_is_not_a_number_stays_so() -> None:
    images = torch.rand(4, 1, 8, 8)
    model = Classifier(Given(3, lambda z: torch.where(z > 2, torch.inf, z).softmax(1)))
    model.examine(images)
    images[1, 0, 0, 0] = 3.0
    assert model.ending == "softmax"
    assert model(images).isfinite().all(1).tolist() == [True, False, True, True]


# What is left as it was -----------------------------------------------------------------------------------------------
def test_nothing_of_a_network_is_kept_alive() -> None:
    seen: list[weakref.ref[Tensor]] = []

    def attend() -> Tensor:
        scores = torch.rand(2, 3)
        attention = scores.softmax(1)
        seen.extend([weakref.ref(scores), weakref.ref(attention)])
        values = 2 * attention
        del scores, attention
        assert [each() for each in seen] == [None, None]
        return values.softmax(1)

    with torch.no_grad():
        logits_before_ending(attend)
    assert len(seen) == 2


def test_a_network_that_fails_leaves_nothing_behind() -> None:
    def fail(z: Tensor) -> Tensor:
        if len(z) == 5:
            raise ValueError("five")
        return z.softmax(1)

    model = Classifier(After(net(), fail))
    before = torch._C._len_torch_function_stack()
    with torch.no_grad():
        model(IMAGES)
        with pytest.raises(Exception, match="five"):
            model(IMAGES[:5])
    assert torch._C._len_torch_function_stack() == before


def test_hooks_and_modes_and_random_numbers() -> None:
    network = nn.Sequential(net(), nn.Softmax(1)).eval()
    network[0][3].train()  # pyright: ignore[reportIndexIssue]  # its dropout
    calls: list[int] = []
    network[1].register_forward_hook(lambda module, given, result: calls.append(len(result)))
    before = torch.get_rng_state()
    ATTACK(network, IMAGES, LABELS)
    assert calls
    assert torch.equal(torch.get_rng_state(), before)
    assert [each.training for each in network.modules()] == [False] * 5 + [True] + [False] * 3
    assert torch.allclose(network(IMAGES).sum(1), torch.ones(8))


# Evaluations ----------------------------------------------------------------------------------------------------------
class Locked(nn.Module):
    """A network that cannot be copied."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.lock = inner, threading.Lock()

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images).softmax(1)


class Noisy(nn.Module):
    """A randomised network."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images + 0.02 * torch.randn_like(images))


class WritesInPlace(nn.Module):
    """A network that autograd can differentiate only in functional form."""

    def __init__(self, inner: Any, after: nn.Module) -> None:
        super().__init__()
        self.inner, self.after = inner, after

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.inner[0](images).exp()
        hidden += 1.0
        return self.after(self.inner[5](hidden.flatten(1)))


def calm(classes: int = 4) -> nn.Module:
    """The network of the other tests, of which many images withstand a small eps."""
    made = net(classes)
    with torch.no_grad():
        made[5].weight.mul_(0.3)  # pyright: ignore[reportIndexIssue]
    return made


def softmaxed(network: nn.Module) -> nn.Module:
    return nn.Sequential(network, nn.Softmax(dim=-1)).eval()


def judged(model: nn.Module, reference: nn.Module, **options: Any) -> Evaluation:
    """A quick evaluation on labels that the reference predicts, but for every seventh."""
    with torch.no_grad():
        logits = reference(PIXELS.to(next(reference.parameters()).dtype))
    labels = logits.argmax(1) if logits.shape[1] > 1 else (logits > 0).long().squeeze(1)
    labels[::7] = (labels[::7] + 1) % max(2, logits.shape[1])
    return evaluate(model, PIXELS, labels, eps=0.02, budget="quick", force=True, **options)


PAIRS: Mapping[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "nn.Softmax": lambda: (softmaxed(calm()), calm()),
    "F.softmax": lambda: (After(calm(), lambda z: F.softmax(z, dim=1)), calm()),
    "a ModelOutput": lambda: (After(calm(), lambda z: ModelOutput(logits=z.softmax(1))), calm()),
    "a traced graph": lambda: (fx.symbolic_trace(softmaxed(calm())).eval(), calm()),
    "one number": lambda: (After(calm(1), lambda z: z.sigmoid().squeeze(1)), calm(1)),
    "cannot be copied": lambda: (Locked(calm()).eval(), calm()),
    "randomised": lambda: (softmaxed(Noisy(calm())), Noisy(calm()).eval()),
    "half precision": lambda: (softmaxed(calm().half()), calm().half()),
    "writes in place": lambda: (
        WritesInPlace(calm(), nn.Softmax(1)).eval(),
        WritesInPlace(calm(), nn.Identity()).eval(),
    ),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "nn.Softmax" else pytest.mark.integration) for kind in PAIRS]
)
def test_an_evaluation_is_that_of_the_network_without_its_softmax(kind: str) -> None:
    network, plain = PAIRS[kind]()
    with torch.no_grad():
        before = network(PIXELS) if kind == "nn.Softmax" else None
    found, twin = judged(network, plain), judged(plain, plain)
    np.testing.assert_array_equal(found.cascade.robust, twin.cascade.robust)
    assert torch.equal(found.cascade.adversarial, twin.cascade.adversarial)
    np.testing.assert_array_equal(found.clean.gap, twin.clean.gap)
    assert 0 < found.robust[0].value < 1
    assert found.verdict.sentence == twin.verdict.sentence
    (noted,) = (each for each in found.findings if each.check == "probabilities")
    assert noted.severity is Severity.NOTE
    assert "which was taken off in the copy that was attacked" in noted.sentence
    others = [each.check for each in found.findings if each is not noted]
    assert others == [each.check for each in twin.findings]
    record, _ = make_record(found, network, name="model", data="images")
    assert verify_record(record, network).holds
    assert before is None or torch.equal(network(PIXELS), before)


def test_a_fooled_image_fools_the_network_as_it_is() -> None:
    network = softmaxed(net())
    found = judged(network, net())
    fooled = found.cascade.first_success >= 0
    assert fooled.any()
    with torch.no_grad():
        predicted = network(found.cascade.adversarial).argmax(1).numpy()
    assert (predicted[fooled] != found.clean.labels[fooled]).all()


def test_a_softmax_that_saturates_withstands_no_more() -> None:
    """Without the logits the attack would not move: the probabilities are exactly 0 and 1."""
    sharp = net()
    with torch.no_grad():
        sharp[5].weight.mul_(10_000)  # pyright: ignore[reportIndexIssue]
        labels = sharp(IMAGES).argmax(1)
    attack = PGD(eps=0.1, steps=5, random_start=False, loss="torch-ce")
    with pytest.warns(CasemateWarning, match="no gradient to follow"):
        hidden = attack(After(sharp, lambda z: z.softmax(1) * 1.0), IMAGES, labels)
    mine, twin = (PGD(eps=0.1, steps=5)(each, IMAGES, labels) for each in (softmaxed(sharp), sharp))
    assert hidden.success.sum() < 2
    assert twin.success.sum() > 4
    assert torch.equal(mine.adversarial, twin.adversarial)


def test_training_mode_is_compared_before_the_softmax() -> None:
    names = ("training-mode", "probabilities")
    mine, twin = (
        {each.check: each.value for each in judged(network.train(), calm()).findings if each.check in names}
        for network in (softmaxed(calm()), calm())
    )
    assert mine == {**twin, "probabilities": 1.0}
    assert twin["training-mode"]


def test_probabilities_that_no_softmax_is_found_behind_void_the_number() -> None:
    network = After(calm(), lambda z: (z.softmax(1) + (2 * z).softmax(1)) / 2)
    with pytest.raises(EvaluationError, match="attacks need the logits before the softmax, which could not be found"):
        evaluate(network, PIXELS, torch.zeros(40, dtype=torch.int64), eps=0.02, attacks={"pgd": ATTACK})


def test_a_network_is_trained_on_its_logits() -> None:
    settings = TrainConfig(epochs=1, batch_size=4)
    made = [fit(model.train(), (IMAGES, LABELS), (IMAGES, LABELS), settings) for model in (softmaxed(net()), net())]
    assert_same(*([each.detach() for each in result.model.network.parameters()] for result in made))
