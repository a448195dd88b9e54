"""Arguments of a wrong kind at the library's entrances: the error is casemate's own, never Python's or PyTorch's."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pytest
import torch

import casemate
from casemate.attacks import FGSM
from casemate.certification import Smoothing, certify, certify_smoothed, predict_smoothed, smoothed
from casemate.defenses import FeatureSqueezing, calibrated
from casemate.defenses.detection import fit_logistic, fit_mahalanobis
from casemate.errors import CasemateError, DataError, SettingError
from casemate.evaluation.detection import evaluate_detector
from casemate.training import TrainConfig, fit
from conftest import tiny_images, tiny_model
from oracles import as_installed

IMAGES = tiny_images(30)
PIXELS, LABELS = IMAGES.tensors()
FEW = Smoothing(n0=5, n=20)
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
    "fit": (fit, {"train": IMAGES, "validation": IMAGES, "settings": TrainConfig(epochs=1)}),
}
"""Functions with arguments that are right, but for a new model each time."""
WRONG: tuple[Any, ...] = ("nonsense", -1, {"a": 1}, object(), 1.5)
LEFT_OUT = ("observer", "engine", "thorough")  # what is true runs all checks


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
        ("evaluate", "checks", 3, SettingError, "checks has a int"),
        ("fit", "settings", {"epochs": 3}, SettingError, r"settings is a dict; expected casemate.TrainConfig"),
        ("fit", "augment", "flip", SettingError, "augment = 'flip'; expected a list of augmentations"),
        ("fit", "device", "gpu", SettingError, "device = 'gpu'; expected one that PyTorch can use here, such as 'cpu'"),
        ("calibrated", "detector", "squeezing", SettingError, r"a str as a detector; .* scores\(model, images\)"),
        ("evaluate_detector", "weights", 1.5, SettingError, r"weights = 1.5; expected at least one"),
    ],
)
def test_the_error_says_what_was_expected(
    name: str, argument: str, wrong: Any, kind: type[CasemateError], words: str
) -> None:
    function, right = ENTRANCES[name]
    with as_installed(), pytest.raises(kind, match=words):
        function(**{"model": tiny_model(), **right, argument: wrong})


def test_a_device_that_this_build_of_pytorch_lacks() -> None:
    if not torch.backends.mps.is_available():
        with as_installed(), pytest.raises(SettingError, match="device = 'mps'; expected one that PyTorch can use"):
            fit(tiny_model(), IMAGES, IMAGES, TrainConfig(epochs=1), device="mps")
