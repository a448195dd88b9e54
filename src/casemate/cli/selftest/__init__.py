"""Run the evaluation on deliberately misleading models, and on honest ones.
- Each misleading model resists one attack without being robust. The evaluation
  must find it broken, weak or not to be trusted, and must trust every honest
  model.
- It trains small networks, and first says how long it takes at most.
- Exits with 0 if every verdict is as expected, with 1 if one is not.

Examples:
  casemate selftest
  casemate selftest --only distilled quantised undefended
  casemate selftest --budget standard --json
"""
