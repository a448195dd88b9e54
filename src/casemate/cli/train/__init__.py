r"""Train a network by a recipe, and judge it on the test images.
- `casemate train --recipe NAME --help` lists the settings of a recipe, which
  are the fields of its objective in Python.
- Writes OUT, a JSON file beside it that says what it is, and its history.
- OUT.training keeps the state after every epoch: after a kill or Ctrl-C the
  same command goes on from there.

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
"""
