"""Measure how robust a model is, and whether the result can be trusted.
- Each attack of the budget runs on the images that the ones before it did
  not fool; images that withstand all of them count as robust. Checks then
  look for reasons not to trust the number; all of them are reported.
- Writes report.html, result.json, examples.parquet, and a record of the
  adversarial examples that others can check with `casemate verify`. Report
  and record hold your images; with --no-images hashes only.
- Model and images are checked first: what makes the result pointless stops
  the evaluation before any attack. Then a part of the first attack says how
  long the rest takes.
- A stopped evaluation keeps its finished pieces, and the same command goes
  on from there; so do more --images, or another eps that is larger. Results
  of another evaluation in OUT are not replaced.

Examples:
  casemate evaluate model.safetensors --budget quick
  casemate evaluate model.safetensors --eps 4/255 8/255 --images 1000
  casemate evaluate mine.nets:load --data mine.npz --norm l2
  casemate evaluate model.safetensors --fail-under 0.6 --json
"""
