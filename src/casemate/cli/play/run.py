"""What `casemate play` does once PyTorch is loaded: gather models and images, and serve the page."""

import errno
import socket
import threading
import webbrowser

from casemate import data
from casemate.cli.play.request import PlayRequest
from casemate.cli.shared.console import show_line
from casemate.cli.shared.inputs import load_images, load_model
from casemate.data import LabelledImages
from casemate.data.fashion_mnist import CLASSES, first_test_images
from casemate.errors import DataError, MachineError, SettingError, missing_extra
from casemate.play.answers import Answers
from casemate.play.study import latest_study, read_study
from casemate.play.subjects import Subject, on_one_page, own_subject, packaged_subjects
from casemate.progress import Observer

_MOST_IMAGES = 1000
"""Of the images, the first ones are offered."""


def prepare(request: PlayRequest, observer: Observer) -> Answers:
    """Load the models and the images. Raises `CasemateError`, also without Gradio."""
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise missing_extra("casemate play", "play") from None
    with observer.work("Loading the models", 0):
        packaged = packaged_subjects()
    study = latest_study() if request.study is None else read_study(request.study)
    if request.model is None:
        if request.data is not None or request.dataset is not None:
            raise SettingError(
                "--data or --dataset without MODEL: the models that come with casemate show the images "
                "that they were trained for; name your model too"
            )
        return Answers(on_one_page(packaged, *_test_images(request, observer)), study)
    opened = load_model(request.model, "cpu", request.loading)
    images = load_images(
        opened,
        request.data,
        request.dataset,
        request.data_dir,
        observer,
        count=_MOST_IMAGES,
        subset=request.subset,
        reading=request.reading,
    ).images
    own = own_subject(opened)
    chosen = images if isinstance(images, LabelledImages) else images.read(slice(0, _MOST_IMAGES))
    alike = [each for each in packaged if _alike(each, own, chosen)]
    if not alike:
        theirs = packaged[0].model
        shape = " x ".join(map(str, theirs.interface["input_shape"]))
        observer.message(
            f"The models that come with casemate are not shown beside {own.name}: they take {shape} images within "
            f"{list(theirs.bounds)} of the classes {', '.join(theirs.classes)}"
        )
    return Answers(on_one_page([own, *alike], chosen, own.model.classes), study)


def _test_images(request: PlayRequest, observer: Observer) -> tuple[LabelledImages, tuple[str, ...]]:
    """Images of Fashion-MNIST that are on this machine; at least the 100 that come with the package."""
    try:
        return data.load("fashion-mnist", request.data_dir, offline=True, observer=observer).test[
            :_MOST_IMAGES
        ], CLASSES
    except DataError:
        if request.data_dir is not None:
            raise
        return first_test_images(), CLASSES


def _alike(packaged: Subject, own: Subject, images: LabelledImages) -> bool:
    """Whether a model of the package takes the same images of the same classes."""
    theirs, ours = packaged.model, own.model
    shape = tuple(theirs.interface["input_shape"])
    return (shape, theirs.classes, theirs.bounds) == (tuple(images.pixels.shape[1:]), ours.classes, ours.bounds)


def show(answers: Answers, port: int, *, browser: bool) -> None:
    """Serve the page until Ctrl-C. Raises `MachineError` for a port that is in use."""
    from casemate.play.server import HOST, serve

    address = f"http://{HOST}:{port}/"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            why = "another program uses it" if error.errno == errno.EADDRINUSE else str(error)
            raise MachineError(f"port {port} is not free: {why}; choose another with --port") from error
    show_line(f"The playground is at {address} (Ctrl-C ends it).")
    if browser:
        threading.Timer(1.0, webbrowser.open, [address]).start()
    serve(answers, port)
