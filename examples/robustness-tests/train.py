"""Train the network: `python train.py` by adversarial training, `python train.py --plain` without.

Takes a few seconds; writes weights.safetensors, or the file named with --out, and the test pictures into test.npz.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from shapes import WEIGHTS, ShapeNet, pictures

import casemate

options = argparse.ArgumentParser(description=__doc__)
options.add_argument("--plain", action="store_true", help="train without adversarial examples")
options.add_argument("--out", type=Path, default=WEIGHTS, help="file for the weights")
chosen = options.parse_args()

torch.manual_seed(0)
network = ShapeNet()
casemate.fit(
    network,
    pictures(2000, seed=2),
    pictures(400, seed=3),
    casemate.TrainConfig(epochs=12, seed=0),
    objective=None if chosen.plain else casemate.AdversarialTraining(eps=8 / 255, steps=4),
)
save_file(network.state_dict(), chosen.out)
images, labels = pictures(200, seed=1)  # those of shapes.held_out
np.savez("test.npz", images=images.numpy(), labels=labels.numpy())
print(f"wrote {chosen.out} and test.npz")
