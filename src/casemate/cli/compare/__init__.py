"""Compare two models on the same images, and say whether B has become worse.
- A and B are two finished evaluations, each a folder that `casemate evaluate`
  wrote or the result.json in it; or two models, which are then evaluated on
  the same images and written into OUT/a and OUT/b.
- Both are compared image by image (McNemar's test, and the 95 % interval of
  the paired difference): without an attack, at every eps that both have, and
  in each class. Evaluations made differently are refused; from a number that
  is not to be trusted nothing follows.
- With --fail-if-worse it exits with 3 if the robust accuracy of B is below
  that of A beyond chance, at any eps; on few images chance explains much.
  With --margin 0.02 it exits with 3 unless a drop of that or more can be
  excluded. Both fail if a number is not to be trusted.

Examples:
  casemate compare runs/before runs/after
  casemate compare runs/before runs/after --fail-if-worse --margin 2%
  casemate compare old.safetensors new.safetensors --eps 8/255 --fail-if-worse
"""
