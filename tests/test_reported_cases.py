"""What users of robustness tools reported, tried here: each case right, or refused with one clear error."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from casemate import (
    APGD,
    FAB,
    FGSM,
    MIFGSM,
    PGD,
    CarliniWagner,
    CasemateError,
    CasemateWarning,
    Classifier,
    DeepFool,
    HopSkipJump,
    LabelledImages,
    Spatial,
    Square,
    TargetedAPGD,
    TargetedFAB,
    eps_curve,
    evaluate,
    evaluate_clean,
)
from casemate.attacks import AbstractAttack
from casemate.errors import ModelError, SettingError
from casemate.evaluation import Evaluation

pytestmark = pytest.mark.usefixtures("unchecked")


def small(classes: int = 4, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0, scale: float = 4.0) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(shape[0], 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * shape[1] * shape[2], classes)
    )
    with torch.no_grad():
        made[-1].weight.mul_(scale)  # pyright: ignore[reportCallIssue]
    return made


def wrapped(network: nn.Module, classes: int = 4, shape: tuple[int, int, int] = (1, 8, 8), **more: Any) -> Classifier:
    names = tuple(f"c{number}" for number in range(classes))
    return Classifier(network, input_shape=shape, classes=names, **more).eval()


class Around(nn.Module):
    """A network with a step before it, after it, or both."""

    def __init__(self, inner: nn.Module, *, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, images: Tensor) -> Any:
        logits = self.inner(images if self.before is None else self.before(images))
        return logits if self.after is None else self.after(logits)


IMAGES = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
BASE = wrapped(small())
with torch.no_grad():
    LABELS = BASE(IMAGES).argmax(1)
ATTACK = PGD(eps=0.1, steps=5)
FEW: tuple[AbstractAttack, ...] = (FGSM(eps=0.1), ATTACK, APGD(eps=0.1, steps=10), DeepFool(steps=10), FAB(steps=5))


def judged(model: Classifier, images: Tensor = IMAGES, labels: Tensor = LABELS, eps: Any = 0.1) -> Evaluation:
    data = LabelledImages(pixels=images.clone(), labels=labels)
    return evaluate(model, data, eps=eps, budget="quick", attacks={"pgd": PGD(eps=eps, steps=5)}, force=True)


def answers(model: Classifier, images: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        return model(images.clone()).argmax(1)


def everywhere(model: Classifier, images: Tensor = IMAGES, labels: Tensor = LABELS) -> list[Callable[[], Any]]:
    """The ways in: an attack, a curve, clean accuracy, an evaluation."""
    data = LabelledImages(pixels=images, labels=labels)
    return [
        lambda: ATTACK(model, images, labels),
        lambda: eps_curve(model, ATTACK, data, [0.05]),
        lambda: evaluate_clean(model, data),
        lambda: judged(model, images, labels),
    ]


@pytest.mark.parametrize("made_inside", [False, True], ids=["images", "images and model"])
@pytest.mark.parametrize("attack", FEW, ids=lambda attack: type(attack).__name__)
def test_1_inside_inference_mode(attack: AbstractAttack, made_inside: bool) -> None:
    wanted = attack(BASE, IMAGES, LABELS)
    with torch.inference_mode():
        model = wrapped(small()) if made_inside else BASE
        found = attack(model, IMAGES.clone(), LABELS.clone())
        assert torch.is_inference_mode_enabled()
    assert torch.equal(found.status, wanted.status)
    assert torch.equal(found.adversarial, wanted.adversarial)


@pytest.mark.integration
def test_1_an_evaluation_inside_inference_mode() -> None:
    with torch.inference_mode():
        found = judged(BASE)
    assert found.robust[-1].value == judged(BASE).robust[-1].value == pytest.approx(2 / 12)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("before", "twin"),
    [
        (lambda x: x.sub_(0.5).div_(0.5), lambda x: (x - 0.5) / 0.5),
        (lambda x: F.relu(x, inplace=True), F.relu),
        (lambda x: x * 0.5 if x.requires_grad else x.mul_(0.5), lambda x: x * 0.5),
    ],
    ids=["normalises", "ReLU", "without a gradient only"],
)
def test_2_networks_that_write_into_their_input(before: Any, twin: Any) -> None:
    bad, good = wrapped(Around(small(), before=before)), wrapped(Around(small(), before=twin))
    labels, images = answers(good), IMAGES.clone()
    data = LabelledImages(pixels=images, labels=labels)
    assert [evaluate_clean(bad, data).accuracy.value for _ in range(3)] == [1.0] * 3
    assert torch.equal(ATTACK(bad, images, labels).adversarial, ATTACK(good, images, labels).adversarial)
    assert judged(bad, images, labels).robust == judged(good, images, labels).robust
    assert torch.equal(images, IMAGES)


class Lenet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.dense = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(96, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(F.max_pool2d(self.convolution(x).relu(), 2).view(-1, 96)) * 10


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dense = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x.view(x.size(0), -1)) * 10


@pytest.mark.parametrize("network", [Lenet, Perceptron])
def test_3_networks_that_view_colour_images(network: Any) -> None:
    model, images = wrapped(network(), shape=(3, 8, 8)), torch.rand(12, 3, 8, 8)
    labels = answers(model, images)
    for call in everywhere(model, images, labels):
        call()
    assert evaluate_clean(model, LabelledImages(pixels=images, labels=labels)).accuracy.value == 1


@pytest.mark.parametrize("after", [None, lambda z: z.squeeze(1)], ids=["(n, 1)", "(n,)"])
def test_4_one_logit(after: Any) -> None:
    pair = wrapped(Around(small(1), after=lambda z: torch.cat([torch.zeros_like(z), z], 1)), 2)
    one = wrapped(Around(small(1), after=after), 2)
    for labels in (torch.zeros(12, dtype=torch.int64), torch.arange(12) % 2):
        found, wanted = ATTACK(one, IMAGES, labels), ATTACK(pair, IMAGES, labels)
        assert torch.equal(found.adversarial, wanted.adversarial)
        assert found.robust_accuracy == wanted.robust_accuracy < 1
        data = LabelledImages(pixels=IMAGES, labels=labels)
        assert evaluate_clean(one, data).accuracy == evaluate_clean(pair, data).accuracy
        assert judged(one, labels=labels).robust == judged(pair, labels=labels).robust
    for call in everywhere(wrapped(Around(small(1), after=after), 4)):
        with pytest.raises(ModelError, match="One logit per image stands for two classes"):
            call()


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (lambda o: (o, o), r"a tuple of 2.*output=0 or output=1"),
        (lambda o: {"a": o, "b": o}, r"a dict with 'a' .*output='a' or output='b'"),
        (lambda o: SimpleNamespace(scores=o), r"a SimpleNamespace with 'scores'.*output='scores'"),
        (lambda o: o.squeeze(), r"shape \(4,\) for 1 image.*squeeze"),
        (lambda o: o.argmax(1), "one logit"),
        (lambda o: torch.cat([o, o], 1), "Name as many classes"),
    ],
    ids=["5 tuple", "5 dict", "5 object", "8 squeeze", "classes", "13 more logits than classes"],
)
def test_answers_that_are_no_logits(after: Any, words: str) -> None:
    texts = set()
    for call in everywhere(wrapped(Around(small(), after=after))):
        with pytest.raises(ModelError, match=words) as caught:
            call()
        texts.add(str(caught.value))
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("after", "output"),
    [
        (lambda o: (o, -o), 0),
        (lambda o: (o,), None),
        (lambda o: {"logits": o, "loss": None}, None),
        (lambda o: SimpleNamespace(logits=o), None),
        (lambda o: {"a": -o, "b": o}, "b"),
        (lambda o: {"a": {"b": o}}, lambda found: found["a"]["b"]),
    ],
    ids=["tuple", "one-tuple", "dict", "ModelOutput", "key", "function"],
)
def test_5_logits_within_something_else(after: Any, output: Any) -> None:
    model = wrapped(Around(small(), after=after), output=output)
    assert torch.equal(ATTACK(model, IMAGES, LABELS).adversarial, ATTACK(BASE, IMAGES, LABELS).adversarial)
    data = LabelledImages(pixels=IMAGES, labels=LABELS)
    assert evaluate_clean(model, data).accuracy.value == 1
    assert judged(model).robust == judged(BASE).robust


def test_6_normalised_images_have_a_finding() -> None:
    model = wrapped(Around(small(), before=lambda x: x * 0.25 + 0.5), bounds=(-2.0, 2.0))
    found = judged(model, (IMAGES - 0.5) / 0.25)
    raised = {finding.check: finding for finding in found.findings}
    assert "2.5 % of their range" in raised["eps-unit"].sentence
    assert "eps-unit" in found.verdict.sentence
    with pytest.warns(CasemateWarning, match="8/255 of pixels within"):
        PGD(eps=8 / 255, steps=2)(model, (IMAGES - 0.5) / 0.25, LABELS)


@pytest.mark.integration
def test_6_bytes_and_eps_of_a_range_of_one() -> None:
    model = wrapped(Around(small(), before=lambda x: x / 255), bounds=(0, 255))
    assert judged(model, IMAGES * 255, eps="8/255").verdict.word == "not to be trusted"
    with pytest.warns(CasemateWarning, match="grey levels"):
        PGD(eps=8 / 255, steps=2)(model, IMAGES * 255, LABELS)
    assert all(finding.severity == "note" for finding in judged(model, IMAGES * 255, eps=8).findings)


def test_6_eps_of_bytes_and_images_of_a_range_of_one() -> None:
    for call in (
        lambda: PGD(eps=8, steps=3)(BASE, IMAGES, LABELS),
        lambda: eps_curve(BASE, ATTACK, LabelledImages(pixels=IMAGES, labels=LABELS), [0.1, 8]),
    ):
        with pytest.warns(CasemateWarning, match="write 8/255"):
            call()
    found = judged(BASE, eps=8)
    assert found.verdict.word == "not to be trusted"
    assert not [finding for finding in found.findings if finding.failed]


@pytest.mark.parametrize("value", [-torch.inf, -1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize(
    "attack", [*FEW, TargetedAPGD(eps=0.1, steps=10), TargetedFAB(steps=5)], ids=lambda attack: type(attack).__name__
)
def test_7_masked_classes_are_as_if_they_were_not_there(attack: AbstractAttack, value: float) -> None:
    mask = torch.tensor([False, False, False, True])
    masked = wrapped(Around(small(), after=lambda o: o.masked_fill(mask, value)))
    indexed = wrapped(Around(small(), after=lambda o: o[:, :3]), 3)
    labels = answers(indexed)
    found, wanted = attack(masked, IMAGES, labels), attack(indexed, IMAGES, labels)
    assert torch.equal(found.status, wanted.status)
    assert torch.allclose(found.adversarial, wanted.adversarial, atol=1e-5)


@pytest.mark.integration
def test_7_an_evaluation_of_masked_classes() -> None:
    masked = wrapped(Around(small(), after=lambda o: o.masked_fill(torch.arange(4) == 3, -torch.inf)))
    indexed = wrapped(Around(small(), after=lambda o: o[:, :3]), 3)
    labels = answers(indexed)
    found, wanted = judged(masked, labels=labels), judged(indexed, labels=labels)
    assert (found.clean.accuracy.value, found.robust) == (1.0, wanted.robust)
    assert [finding.check for finding in found.findings] == [finding.check for finding in wanted.findings]


def _in(dtype: torch.dtype) -> Classifier:
    return wrapped(small().to(dtype))


@pytest.mark.parametrize(
    ("model", "images"),
    [
        (BASE, IMAGES.double()),
        (BASE, IMAGES.half()),
        (_in(torch.float16), IMAGES),
        (_in(torch.float16), IMAGES.half()),
        (_in(torch.bfloat16), IMAGES),
        (_in(torch.float64), IMAGES),
        (_in(torch.float64), IMAGES.double()),
    ],
    ids=["double images", "half images", "half network", "half both", "bfloat16", "double network", "double both"],
)
def test_9_other_precisions(model: Classifier, images: Tensor) -> None:
    assert ATTACK(model, images, LABELS).robust_accuracy == pytest.approx(2 / 12)
    assert judged(model, images).robust[-1].value == pytest.approx(2 / 12)


def test_8_a_network_that_squeezes_fails_at_once() -> None:
    model = wrapped(Around(small(), after=lambda o: o.squeeze()))
    for call in (
        lambda: ATTACK(model, IMAGES, LABELS),
        lambda: ATTACK(model, IMAGES[:1], LABELS[:1]),
        lambda: ATTACK(model, IMAGES, LABELS, batch_size=1),
        lambda: judged(model),
    ):
        with pytest.raises(ModelError, match=r"do not squeeze\(\) it"):
            call()


def test_10_what_the_previous_tool_accepted() -> None:
    wanted = ATTACK(BASE, IMAGES, LABELS).adversarial
    assert torch.equal(ATTACK(BASE, IMAGES.numpy(), LABELS.numpy()).adversarial, wanted)
    assert torch.equal(ATTACK(small(), IMAGES, LABELS).adversarial, wanted)
    assert torch.equal(
        ATTACK(Classifier(small(), input_shape=(1, 8, 8), classes=4), IMAGES, LABELS).adversarial, wanted
    )
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=5)
    found = evaluate(BASE, loader, eps=0.1, budget="quick", attacks={"pgd": ATTACK})
    assert found.robust == judged(BASE).robust
    names = Classifier(small(), input_shape=(1, 8, 8), classes=tuple("abcd"), mean=0.5, std=0.5)
    twin = wrapped(small(), mean=(0.5,), std=(0.5,))
    assert torch.equal(ATTACK(names, IMAGES, LABELS).adversarial, ATTACK(twin, IMAGES, LABELS).adversarial)
    with pytest.raises(SettingError, match="one eps per attack"):
        PGD(eps=[0.1, 0.2])  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"Return logits.flatten\(1\)"):
        ATTACK(wrapped(nn.Conv2d(1, 4, 8)), IMAGES, LABELS)


def test_13_more_logits_than_classes() -> None:
    for call in everywhere(wrapped(small(10), 4), labels=torch.zeros(12, dtype=torch.int64)):
        with pytest.raises(ModelError, match=r"shape \(1, 10\) for 1 image.*Name as many classes"):
            call()


def test_22_labels_and_images_of_other_kinds() -> None:
    wanted = ATTACK(BASE, IMAGES, LABELS).adversarial
    for labels in (LABELS.int(), LABELS.byte(), LABELS.tolist(), LABELS.numpy().astype("int32")):
        assert torch.equal(ATTACK(BASE, IMAGES, labels).adversarial, wanted)
    grey = (IMAGES * 255).byte()
    assert torch.equal(ATTACK(BASE, grey, LABELS).adversarial, ATTACK(BASE, grey / 255, LABELS).adversarial)
    for images, labels, words in (
        (IMAGES, LABELS.float(), "labels.long"),
        (IMAGES, F.one_hot(LABELS, 4), "labels.argmax"),
        (IMAGES, LABELS[:5], "expected 12 int64"),
        (IMAGES * 255, LABELS, "bytes by 1/255"),
        (IMAGES[0], LABELS[:1], r"images\[None\]"),
        (IMAGES.permute(0, 2, 3, 1), LABELS, "channels last"),
    ):
        with pytest.raises(CasemateError, match=words):
            ATTACK(BASE, images, labels)


@pytest.mark.integration
def test_11_a_search_that_is_too_short_warns() -> None:
    for steps, rounds in ((10, 1), (50, 2)):
        with pytest.warns(CasemateWarning, match="found nothing that fools on 11 of 12 images"):
            CarliniWagner(steps=steps, binary_search_steps=rounds)(BASE, IMAGES, LABELS)
    assert CarliniWagner(steps=200, binary_search_steps=5)(BASE, IMAGES, LABELS).robust_accuracy == 0


def test_11_an_evaluation_does_not_rest_on_it() -> None:
    data, attacks = LabelledImages(pixels=IMAGES, labels=LABELS), {"cw": CarliniWagner(steps=10, binary_search_steps=1)}
    found = evaluate(BASE, data, eps=0.5, norm="l2", budget="quick", attacks=attacks)
    assert found.verdict.word == "not to be trusted"
    assert "nothing-found" in [finding.check for finding in found.findings]


@pytest.mark.parametrize("way", ["rounds", "no_grad", "inference_mode", "detaches", "leaves it off"])
def test_12_no_gradient_warns_and_is_a_finding(way: str) -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small()

        def forward(self, x: Tensor) -> Tensor:
            if way == "rounds":
                return self.inner((x * 255).round() / 255)
            if way == "leaves it off":
                torch.autograd.set_grad_enabled(False)
                return self.inner(x)
            modes: dict[str, AbstractContextManager[Any]] = {
                "no_grad": torch.no_grad(),
                "inference_mode": torch.inference_mode(),
                "detaches": nullcontext(),
            }
            with modes[way]:
                return self.inner(x).detach()

    model = wrapped(Hidden())
    with pytest.warns(CasemateWarning, match="no gradient to follow on 1[12] of 12 images"):
        ATTACK(model, IMAGES, answers(model))
    assert torch.is_grad_enabled()
    found = judged(model, labels=answers(model))
    assert found.verdict.word == "not to be trusted"
    assert "zero-gradients" in [finding.check for finding in found.findings]


def test_14_a_network_that_keeps_what_it_saw() -> None:
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.out = small(seed=0), small(seed=1), torch.zeros(1, 4)

        def forward(self, x: Tensor) -> Tensor:
            for network in (self.first, self.second):
                self.out = self.out + network(x)
            return self.out / 2

    network = Ensemble()
    for call in everywhere(wrapped(network)):
        with pytest.raises(ModelError, match="keep nothing between calls"):
            call()
        assert torch.equal(network.out, torch.zeros(1, 4))


class Keeps(nn.Module):
    """Keeps its last logits, with their graph, as a user does who looks at them later."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
        self.last: Any = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        self.last = logits = self.inner(images)
        return logits


def test_14_a_network_that_keeps_its_last_logits() -> None:
    model = Classifier(Keeps())
    model(IMAGES.clone().requires_grad_())
    kept = model.network.last
    found = evaluate(model, IMAGES, torch.arange(len(IMAGES)) % 3, eps=0.05, budget="quick", force=True)
    assert [each.check for each in found.findings if each.failed] == []
    assert model.network.last is kept


def test_a_check_that_the_model_makes_fail_is_named() -> None:
    def before(x: Tensor) -> Tensor:
        if x.max() > 1.5:
            raise ValueError("not within [0, 1]")
        return x

    images = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = (answers(BASE, images) + torch.arange(24) % 2) % 4  # with half of them wrong, another scale may be right
    found = judged(wrapped(Around(small(), before=before)), images, labels)
    (finding,) = [each for each in found.findings if each.failed]
    assert (finding.check, finding.severity) == ("normalisation", "weakens")
    assert "1 check could not be completed: normalisation" in found.verdict.sentence


@pytest.mark.integration
def test_training_mode_is_a_note() -> None:
    model = wrapped(nn.Sequential(nn.Dropout(0.5), small())).train()
    found = judged(model)
    assert {finding.check: str(finding.severity) for finding in found.findings}["training-mode"] == "note"
    assert found.robust == judged(wrapped(nn.Sequential(nn.Dropout(0.5), small()))).robust
    assert model.training


# Cases that were right before
@pytest.mark.parametrize("classes", [2, 3, 1000])
def test_15_any_number_of_classes(classes: int) -> None:
    model = wrapped(small(classes), classes)
    labels = answers(model, IMAGES[:4])
    for attack in (APGD(eps=0.1, steps=5), TargetedAPGD(eps=0.1, steps=5), TargetedFAB(steps=3), DeepFool(steps=50)):
        assert torch.isfinite(attack(model, IMAGES[:4], labels).adversarial).all()


def test_17_modes_and_random_numbers_are_restored() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(256, 4)
    )
    model = wrapped(network).train()
    network[1].eval()
    modes, before = [module.training for module in model.modules()], torch.get_rng_state()
    ATTACK(model, IMAGES, LABELS)
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(FGSM(eps=0)(BASE, IMAGES, LABELS).adversarial, IMAGES)


def test_18_company_does_not_matter() -> None:
    for attack in (MIFGSM(eps=0.05), PGD(eps=0.05, steps=10)):
        one, all_of_them = attack(BASE, IMAGES, LABELS, batch_size=1), attack(BASE, IMAGES, LABELS, batch_size=12)
        assert torch.allclose(one.adversarial, all_of_them.adversarial, atol=1e-6)


def test_19_images_that_are_wrong_already_stay() -> None:
    for attack in (DeepFool(steps=10), HopSkipJump(n_queries=200, starts=20), FAB(steps=5)):
        assert torch.equal(attack(BASE, IMAGES, (LABELS + 1) % 4).adversarial, IMAGES)


def test_20_targets() -> None:
    targets = (LABELS + 1) % 4
    found = PGD(eps=0.3, steps=20)(BASE, IMAGES, LABELS, targets=targets)
    assert (found.prediction[found.success] == targets[found.success]).all()
    with pytest.raises(SettingError, match="equals the true label"):
        ATTACK(BASE, IMAGES, LABELS, targets=LABELS)


@pytest.mark.parametrize("shape", [(1, 5, 3), (3, 4, 40), (13, 6, 6)])
def test_21_any_shape(shape: tuple[int, int, int]) -> None:
    model, images = wrapped(small(4, shape), 4, shape), torch.rand(4, *shape)
    for attack in (Square(eps=0.1, n_queries=40), Spatial(rotations=3, shifts=3)):
        assert torch.isfinite(attack(model, images, answers(model, images)).adversarial).all()


def test_24_gradients_below_float32_still_point() -> None:
    big = wrapped(small(scale=400.0))
    labels = answers(big)
    for attack in (FGSM(eps=0.1), PGD(eps=0.5, norm="l2", steps=5), PGD(eps=2, norm="l1", steps=5)):
        assert torch.isfinite(attack(big, IMAGES, labels).adversarial).all()
    assert judged(big, labels=labels).verdict.fallen


@pytest.mark.integration
def test_25_accuracy_falls_with_eps_and_lucky_draws_do_not_count() -> None:
    left = [PGD(eps=eps, steps=5)(BASE, IMAGES, LABELS).robust_accuracy for eps in (0, 0.02, 0.05, 0.1, 0.2)]
    assert left == sorted(left, reverse=True)
    dropping = wrapped(Around(small(), before=lambda x: F.dropout(x, 0.3, True)))
    assert not judged(dropping).verdict.favourable


@pytest.mark.parametrize(
    "network",
    [torch.jit.script, lambda n: torch.jit.trace(n, IMAGES[:2]), nn.DataParallel, torch.nn.utils.parametrizations],
    ids=["scripted", "traced", "parallel", "weight norm"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_26_modules_of_other_kinds(network: Any) -> None:
    inner = small()
    if network is torch.nn.utils.parametrizations:
        made: Any = inner
        network.weight_norm(inner[3])  # pyright: ignore[reportIndexIssue]
    else:
        made = network(inner)
    assert ATTACK(wrapped(made), IMAGES, LABELS).robust_accuracy == pytest.approx(2 / 12)
