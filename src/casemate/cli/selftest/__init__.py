"""Try the evaluation on models known to lie, and on honest ones.
- Every liar is first attacked by what it fools, which claims too much; the
  evaluation must then call it broken or not to be trusted. It may call no
  honest model not to be trusted.
- Small networks are trained for it. Says beforehand what it takes at most.
- Exits with 0 if all came out as they must, with 1 if one did not.

Examples:
  casemate selftest
  casemate selftest --only distilled quantised undefended
  casemate selftest --budget standard --json
"""
