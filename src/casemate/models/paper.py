"""The study's two networks, appendix A (`paper-cnn`) and appendix B (`paper-student`), and variants of them.

They return logits; the final softmax of the paper's networks is part of the loss here. Where the paper has a ReLU
before a max-pooling, the pooling comes first here: maximum and ReLU commute with the same value and gradient (a maximum
at or below zero passes no gradient either way), and the ReLU has a quarter of the work.
"""

from functools import partial

from torch import nn

from casemate.models.halving import halved_positions
from casemate.models.keras_init import batch_norm, he_normal, keras_defaults
from casemate.models.layers import NoiseLayer
from casemate.models.registry import register


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding="same")


@register("paper-cnn")
def paper_cnn(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build the network of the paper's appendix A, which the study uses by default and as the teacher in distillation.

    It has 838k parameters for images of 1 x 28 x 28 in 10 classes.
    """
    flat = 128 * halved_positions(input_shape, 3, "paper-cnn")
    network = nn.Sequential(
        _conv(input_shape[0], 32),
        nn.MaxPool2d(2),
        nn.ReLU(),
        _conv(32, 64),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Dropout(0.3),
        batch_norm(64),
        _conv(64, 128),
        nn.ReLU(),
        _conv(128, 128),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Dropout(0.4),
        nn.Flatten(),
        batch_norm(flat, flat=True),
        nn.Linear(flat, 512),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Linear(512, classes),
    )
    keras_defaults(network)
    he_normal(network[0])  # pyright: ignore[reportArgumentType]
    return network


def _student_block(inputs: int, width: int) -> list[nn.Module]:
    convolutions = ((inputs, width), (width, width))
    layers = [layer for a, b in convolutions for layer in (_conv(a, b), nn.ReLU(), batch_norm(b))]
    return [*layers, nn.MaxPool2d(2), nn.Dropout(0.5)]


def student_network(input_shape: tuple[int, int, int], classes: int, *, width: int, depth: int) -> nn.Module:
    """Build a network like that of appendix B, with `depth` blocks of `width`, 2 * `width`, ... channels.

    A block has two convolutions with batch normalisation, a pooling and dropout; dense layers with 16 * `width` hidden
    units follow.
    """
    flat = (width << (depth - 1)) * halved_positions(input_shape, depth, f"a student of {depth} blocks")
    blocks, inputs = [], input_shape[0]
    for channels in (width << block for block in range(depth)):
        blocks += _student_block(inputs, channels)
        inputs = channels
    head = [nn.Flatten(), nn.Linear(flat, 16 * width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16 * width, classes)]
    network = nn.Sequential(*blocks, *head)
    keras_defaults(network)
    he_normal(network[0])  # pyright: ignore[reportArgumentType]
    he_normal(network[3])  # pyright: ignore[reportArgumentType]
    return network


@register("paper-student")
def paper_student(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build the study's student network (appendix B), smaller and with more dropout than `paper-cnn`."""
    return student_network(input_shape, classes, width=32, depth=2)


for _width in (8, 16, 32):
    for _depth in (1, 2, 3):
        register(f"student-{_width}x{_depth}")(partial(student_network, width=_width, depth=_depth))


@register("paper-cnn-noise")
def paper_cnn_noise(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build `paper-cnn` with a noise layer before each convolution: std 0.2 before the first, 0.1 before the others.

    Positions and deviations are those of Liu et al. 2018, "Towards robust neural networks via random self-ensemble".
    Initially the noise is added during training only.
    """
    layers: list[nn.Module] = []
    for layer in paper_cnn(input_shape, classes).children():
        if isinstance(layer, nn.Conv2d):
            layers.append(NoiseLayer(0.1 if layers else 0.2))
        layers.append(layer)
    return nn.Sequential(*layers)
