"""Tell how robust a model is, and whether the answer can be trusted.
- Every attack of the budget runs on the images that those before it left
  right; what no attack fools counts as robust. Then checks look for
  reasons not to believe the number. None of them can be hidden.
- Writes report.html, result.json, examples.parquet, and a record of the
  adversarial examples that others can check with `casemate verify`.
- Says beforehand what each budget takes at most. An evaluation that is
  stopped leaves nothing. What another one left in OUT is not replaced.

Examples:
  casemate evaluate model.safetensors --budget quick
  casemate evaluate model.safetensors --eps 4/255 8/255 --images 1000
  casemate evaluate mine.nets:load --data mine.npz --norm l2
  casemate evaluate model.safetensors --fail-under 0.6 --json
"""
