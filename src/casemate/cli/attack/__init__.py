r"""Attack a model, and measure the accuracy that is left.
- casemate attack ATTACK MODEL [OPTIONS]; `casemate attack ATTACK --help` lists
  the options of one attack. Each is a field of the attack's class in Python.
- Worst: an image is lost if it fools the model at this or a smaller eps; for
  gradient attacks at any iterate. Last: only the last iterate counts, as in
  other tools. Minimum-norm attacks run once, for all eps.
- With --out: result.json, a table of examples, adversarial.safetensors and a
  contact sheet of originals, perturbations and adversarial images.
- Python only: Transfer, BPDA, and other ways to wrap or change an attack.
  Other packages add attacks by the entry point "casemate.attacks".

Examples:
  casemate attack fgsm model.safetensors --eps 0.01 0.05 0.1
  casemate attack pgd model.safetensors --eps 8/255 --restarts 5
  casemate attack pgd model.safetensors --eps 0.1 --target Shirt --out shirts
  casemate attack square mine.nets:load --data mine.npz --eps 8/255
  casemate attack carlini-wagner model.safetensors --images 100
"""
