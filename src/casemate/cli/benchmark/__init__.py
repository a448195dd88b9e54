"""Train defended models from their seeds, attack and certify them, in one table.
- Each model of the benchmark is trained, then evaluated on the first test
  images at every eps; those named by --headline on all test images too.
- Models that are trained for certificates are certified too, and their
  images that are not proven robust are attacked.
- Writes benchmark.json, the table benchmark.md, a figure, and in a folder per
  model its weights and what was measured. Every finished epoch and step is
  kept: after a kill or Ctrl-C the same command continues from there.
- --dry-run says how long it takes; --images 64 --train-images 2000 --budget
  quick is a first try of all of it, in minutes.

Examples:
  casemate benchmark --list
  casemate benchmark undefended --dry-run
  casemate benchmark --out runs/benchmark --headline undefended
"""
