"""Check a record of adversarial examples against its model.
- Recomputes every claim of the record: checksums of the files, distances in
  float64, the class of every image in a batch of its own, and the highest
  robust accuracy that the examples allow.
- A record holds the clean and the adversarial images. One written with
  `casemate evaluate --no-images` holds hashes only and can only be checked by
  hash: of the model, and with --data of the images.
- Exits with 0 if every claim holds, 3 if one does not, 2 if files cannot
  be read or do not belong together.

Examples:
  casemate verify runs/evaluate-model/record.json model.safetensors
  casemate verify record.json mine.nets:load --data mine.npz
"""
