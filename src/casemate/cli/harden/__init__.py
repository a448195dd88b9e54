r"""Fine-tune a trained model against attacks, and measure whether that helped.
- Your model is evaluated; then copies of it are fine-tuned, one by each recipe
  and one, the control, by ordinary training for as many epochs; these are
  evaluated on the same images. The report says whether the recipe helped, and
  the price.
- The epoch is chosen by robust accuracy on images set aside, never by the test
  images. Without --test these are set aside too: if your model was trained on
  them, give --test with images that are new to it.
- Writes report.html, harden.json and the weights of control and hardened model
  as safetensors. Your model does not change.
- Finished steps and epochs are kept in OUT/steps: after a kill or Ctrl-C the
  same command continues from there.

Examples:
  casemate harden model.safetensors --eps 0.1 --budget quick
  casemate harden mine.nets:load --data mine.npz --eps 8/255
  casemate harden mine.nets:load --data train.npz --test test.npz --eps 8/255 \
      --recipe adversarial-training adversarial-regularization --epochs 20
"""
