"""Reproduce the paper's study: train, attack, report.
- Every finished artifact is kept at once and never computed twice: after a kill
  or Ctrl-C the same command goes on from there.
- At the end there is a report, one HTML file; its main numbers are printed.

Examples:
  casemate study --scale smoke             does everything run? minutes
  casemate study --scale full --dry-run    what would it take?
  casemate study --only E2 E3              two experiments, quick scale
"""
