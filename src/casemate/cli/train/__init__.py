r"""Train a network by a recipe, and measure its accuracy on the test images.
- `casemate train --recipe NAME --help` lists the settings of a recipe, which
  are the fields of its objective in Python.
- Writes the model to OUT, and beside it a JSON file that describes it and the
  history of the training.
- OUT.training holds the state after the last epoch: after a kill or Ctrl-C
  the same command continues from there.
- torchrun shares the training among processes or GPUs; --batch-size stays that
  of all together.

Examples:
  casemate train --epochs 5 --batch-size 64 --schedule one-cycle \
      --ema 0.999 --augment alternating-flip --out first.safetensors
  casemate train --recipe adversarial-regularization \
      --start first.safetensors --patience 5 --out regularised.safetensors
  casemate train --recipe adversarial-training --eps 0.1 --steps 7 \
      --schedule one-cycle --out robust.safetensors
  casemate train --recipe at-temperature --out teacher.safetensors
  casemate train --recipe distillation --teacher teacher.safetensors \
      --architecture paper-student --out student.safetensors
  torchrun --nproc-per-node 4 -m -- casemate train --epochs 10
"""
