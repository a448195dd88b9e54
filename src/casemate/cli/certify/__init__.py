"""Prove how robust a model is at least, and attack what is not proven.
- Bounds of the network's outputs prove of some images that nothing within eps
  of them is classified otherwise. The other images are attacked, and so is a
  random sample of the proven ones: the true robust accuracy lies between the
  certified and the attacked one.
- If an attack fools a certified image, no certificate of the run counts: the
  command says which image it is, and exits with 3.
- With --smoothing SIGMA the smoothed model is certified instead, in l2, by
  random noise. It is another classifier than the model, and nothing is
  attacked.
- A stopped run keeps its finished parts, and the same command goes on from
  there.
- Writes report.html, certification.json, the picture certified-accuracy.svg
  and a table with a row for each image.

Examples:
  casemate certify model.safetensors --eps 0.05 0.1
  casemate certify mine.nets:load --data mine.npz --eps 8/255 --no-attack
  casemate certify model.safetensors --norm l2 --eps 0.5 --method crown-ibp
  casemate certify noisy.safetensors --smoothing 0.25 --draws 100 1000
"""
