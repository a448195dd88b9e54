"""Arguments of a wrong kind at the library's entrances: the error is casemate's own, never Python's or PyTorch's."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import casemate
from casemate.attacks import FGSM, PGD, Square
from casemate.certification import Smoothing, certify, certify_smoothed, predict_smoothed, smoothed
from casemate.defenses import FeatureSqueezing, calibrated
from casemate.defenses.detection import fit_logistic, fit_mahalanobis
from casemate.errors import CasemateError, DataError, SettingError
from casemate.evaluation.detection import evaluate_detector
from casemate.hardening.plan import plan_hardening
from casemate.models.checkpoint import ModelMetadata
from casemate.training import TrainConfig, fit
from conftest import tiny_images, tiny_model
from oracles import as_installed, untyped

IMAGES = tiny_images(30)
PIXELS, LABELS = IMAGES.tensors()
FEW = Smoothing(n0=5, n=20)
WEAK = PGD(eps=0.01, steps=2)
ENTRANCES: Mapping[str, tuple[Callable[..., Any], Mapping[str, Any]]] = {
    "evaluate": (
        casemate.evaluate,
        {"images": IMAGES, "eps": 0.01, "budget": "quick", "attacks": FGSM(eps=0.01), "force": True},
    ),
    "evaluate_certified": (casemate.evaluate_certified, {"images": IMAGES, "eps": 0.001, "budget": None}),
    "evaluate_detector": (
        evaluate_detector,
        {
            "detector": calibrated(FeatureSqueezing(), tiny_model(), PIXELS),
            "images": IMAGES,
            "eps": 0.1,
            "steps": 1,
            "restarts": 1,
        },
    ),
    "attack": (FGSM(eps=0.01).__call__, {"images": PIXELS, "labels": LABELS}),
    "certify": (certify, {"images": IMAGES, "eps": 0.001, "method": "interval"}),
    "certify_smoothed": (certify_smoothed, {"images": IMAGES, "smoothing": FEW}),
    "predict_smoothed": (predict_smoothed, {"images": IMAGES, "smoothing": FEW}),
    "smoothed": (smoothed, {"smoothing": FEW}),
    "calibrated": (calibrated, {"detector": FeatureSqueezing(), "images": IMAGES}),
    "fit_logistic": (fit_logistic, {"clean": PIXELS, "adversarial": PIXELS}),
    "fit_mahalanobis": (fit_mahalanobis, {"images": IMAGES}),
    "evaluate_clean": (casemate.evaluate_clean, {"images": IMAGES}),
    "eps_curve": (casemate.eps_curve, {"attack": WEAK, "images": IMAGES, "values": [0.01, 0.02]}),
    "steps_curve": (casemate.steps_curve, {"attack": WEAK, "images": IMAGES, "values": [1, 2]}),
    "query_curve": (
        casemate.query_curve,
        {"attack": Square(eps=0.1, n_queries=20), "images": IMAGES, "values": [5, 20]},
    ),
    "worst_case": (casemate.worst_case, {"attacks": {"pgd": WEAK}, "images": IMAGES, "values": [0.01]}),
    "targeted_matrix": (casemate.targeted_matrix, {"attack": WEAK, "images": IMAGES}),
    "zero_gradients": (casemate.zero_gradients, {"images": IMAGES}),
    "gradient_alignment": (casemate.gradient_alignment, {"images": IMAGES, "radius": 0.1}),
    "plan_hardening": (plan_hardening, {"train": tiny_images(120), "test": IMAGES, "eps": 0.05, "budget": "quick"}),
    "fit": (fit, {"train": IMAGES, "validation": IMAGES, "settings": TrainConfig(epochs=1)}),
}
"""Functions with arguments that are right, but for a new model each time."""
WRONG: tuple[Any, ...] = ("nonsense", -1, {"a": 1}, object(), 1.5)
LEFT_OUT = ("observer", "engine", "thorough")  # what is true runs all checks


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text is the name of a folder or file, where an argument is one."""
    monkeypatch.chdir(tmp_path)


def _cases() -> list[tuple[str, str]]:
    return [
        (name, argument)
        for name, (function, _) in ENTRANCES.items()
        for argument in inspect.signature(function).parameters
        if argument not in LEFT_OUT
    ]


@pytest.mark.filterwarnings("ignore::casemate.errors.CasemateWarning")  # some of them are only unusual
@pytest.mark.parametrize(("name", "argument"), _cases())
def test_a_wrong_argument_is_an_error_of_casemate(name: str, argument: str) -> None:
    function, right = ENTRANCES[name]
    for wrong in WRONG:
        given = {"model": tiny_model(), **right, argument: wrong}
        with as_installed(), suppress(CasemateError):
            function(**given)


@pytest.mark.parametrize("name", ENTRANCES)
def test_the_arguments_are_right_otherwise(name: str) -> None:
    function, right = ENTRANCES[name]
    with as_installed():
        function(**{"model": tiny_model(), **right})


@pytest.mark.parametrize(
    ("name", "argument", "wrong", "kind", "words"),
    [
        ("evaluate", "images", {"train": IMAGES, "test": IMAGES}, DataError, r"a dict as images; .* \(train, test\)"),
        ("evaluate", "batch_size", 1.5, SettingError, "batch_size = 1.5; expected a whole number, at least 1"),
        ("evaluate", "checks", 3, SettingError, "checks has an int"),
        ("fit", "settings", {"epochs": 3}, SettingError, r"settings is a dict; expected casemate.TrainConfig"),
        ("fit", "augment", "flip", SettingError, "augment = 'flip'; expected a list of augmentations"),
        ("fit", "device", "gpu", SettingError, "device = 'gpu'; expected one that PyTorch can use here, such as 'cpu'"),
        ("calibrated", "detector", "squeezing", SettingError, r"a str as a detector; .* scores\(model, images\)"),
        ("evaluate_detector", "weights", 1.5, SettingError, "weights = 1.5; expected a list of values"),
    ],
)
def test_the_error_says_what_was_expected(
    name: str, argument: str, wrong: Any, kind: type[CasemateError], words: str
) -> None:
    function, right = ENTRANCES[name]
    with as_installed(), pytest.raises(kind, match=words):
        function(**{"model": tiny_model(), **right, argument: wrong})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: casemate.verify_record(untyped("runs/record"), tiny_model()), "a str as a record; .* read_record"),
        (lambda: casemate.ensemble(untyped(tiny_model())), "the models are a Classifier; expected a list of them"),
        (lambda: casemate.ensemble([tiny_model()], weights=untyped(1.0)), "weights = 1.0; expected a list of values"),
        (lambda: TrainConfig(save_epochs=untyped(3)), "save_epochs = 3; expected a list of values"),
        (lambda: TrainConfig(save_epochs=untyped(("all",))), "save_epochs = 'all'; expected a whole number"),
        (lambda: TrainConfig(schedule=untyped({"cosine": 1})), "schedule = .*; expected constant"),
    ],
)
def test_other_objects_of_a_wrong_kind(make: Callable[[], object], words: str) -> None:
    with as_installed(), pytest.raises(CasemateError, match=words):
        make()


def evaluated() -> casemate.Evaluation:
    """An evaluation in no time."""
    return casemate.evaluate(tiny_model(), IMAGES[:6], eps=0.01, attacks=FGSM(eps=0.01), force=True)


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (casemate.load, "path"),
        (casemate.models.open_model, "source"),
        (lambda wrong: casemate.models.open_model("mine.py:load", weights=wrong), "weights"),
        (lambda wrong: casemate.save(tiny_model(), wrong, ModelMetadata(architecture="tiny", dataset="bars")), "path"),
        (casemate.read_record, "path"),
        (casemate.read_images, "path"),
        (lambda wrong: casemate.data.load("fashion-mnist", wrong), "data_dir"),
        (lambda wrong: casemate.data.open_images("photos", labels=wrong), "labels"),
        (lambda wrong: fit(tiny_model(), IMAGES, IMAGES, TrainConfig(epochs=1), checkpoint=wrong), "checkpoint"),
        (lambda wrong: evaluated().report(wrong), "folder"),
    ],
)
def test_what_is_no_path(use: Callable[[Any], object], name: str) -> None:
    with as_installed():
        for wrong, words in ((3, "an int"), (True, "a bool"), (tiny_model(), "a Classifier"), (b"a", "a bytes")):
            with pytest.raises(SettingError, match=f"^{name} is {words}; expected a path: a text or a pathlib.Path$"):
                use(wrong)


def test_metadata_that_is_none() -> None:
    with as_installed(), pytest.raises(SettingError, match="description is a str; expected casemate"):
        casemate.save(tiny_model(), "a.safetensors", untyped("my model"))


def test_a_device_that_this_build_of_pytorch_lacks() -> None:
    if not torch.backends.mps.is_available():
        with as_installed(), pytest.raises(SettingError, match="device = 'mps'; expected one that PyTorch can use"):
            fit(tiny_model(), IMAGES, IMAGES, TrainConfig(epochs=1), device="mps")
