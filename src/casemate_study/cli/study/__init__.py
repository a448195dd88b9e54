"""Reproduce the paper's study: train, attack, report.
- Every artifact is stored as soon as it is finished and never computed twice:
  after a kill or Ctrl-C the same command continues from there.
- The report is one HTML file; the command prints its main numbers.

Examples:
  casemate study --scale smoke             does everything run? minutes
  casemate study --scale full --dry-run    what would it take?
  casemate study --only E2 E3              two experiments, quick scale
"""
