#!/bin/sh
# torch.load reads a weights file with flipped bits without a word.
# Saves two tensors, flips one bit of the first one's values in the file, and reads it.
# One expects an error: the file is a ZIP archive with a CRC-32 of every part, which torch.save writes and Python's zipfile
# checks. torch.load does not look at them, and gives weights that are not those that were saved. Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q numpy==2.3.5 torch==2.13.0
env/bin/python - <<'PYTHON'
import zipfile

import torch

weights = {"a": torch.arange(1000.0), "b": torch.ones(10)}
torch.save(weights, "weights.pt")
with open("weights.pt", "rb") as stream:
    content = bytearray(stream.read())
place = content.index(weights["a"].numpy().tobytes()) + 4 * 500 + 3
content[place] ^= 0x40
with open("weights.pt", "wb") as stream:
    stream.write(content)
print(f"torch {torch.__version__}; saved a[500] = {weights['a'][500].item()}")
try:
    read = torch.load("weights.pt", weights_only=True)["a"][500].item()
except Exception as error:
    raise SystemExit(f"it refuses the file now: {error}")
print(f"torch.load gives a[500] = {read}")
with zipfile.ZipFile("weights.pt") as archive:
    damaged = archive.testzip()
print(f"zipfile finds a wrong checksum: {damaged}")
if read == weights["a"][500].item() or damaged is None:
    raise SystemExit("not as described")
print("as described: other weights than those that were saved, and the checksum is there")
PYTHON
