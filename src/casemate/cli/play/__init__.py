"""Attack images in the browser, and see which models hold.
- Opens a page on this machine: choose a model, an image or a picture of your
  own, an attack; drag eps and the iterations. It shows the perturbation, the
  probabilities, the path of the loss, and the smallest eps that fools each
  model; another tab shows how gradients vanish.
- Without MODEL it has the models that come with casemate, and needs no
  training or download. Your own model is shown beside those that take the
  same images.
- Only this machine can reach the page, and it loads nothing from elsewhere.
  Ctrl-C ends it.

Examples:
  casemate play
  casemate play model.safetensors
  casemate play mine.nets:load --data mine.npz --port 8080
"""
