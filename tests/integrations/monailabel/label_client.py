"""What 3D Slicer's plugin does in a session of annotation, by the client that it carries; prints what it got as JSON.

Run by the server's Python: ``label_client.py URL FOLDER``.
"""

import json
import sys

from monailabel.client import MONAILabelClient

url, folder = sys.argv[1:]
client = MONAILabelClient(url, tmpdir=folder, client_id="tests")
info = client.info()
# The selector of automatic segmentation lists these types.
models = [name for name, model in info["models"].items() if model["type"] in ("segmentation", "detection")]


def options(entry):
    """Of a menu, the first entry is the one selected."""
    return {key: value[0] if isinstance(value, list) else value for key, value in entry.get("config", {}).items()}


strategy = next(iter(info["strategies"]))
sample = client.next_sample(strategy, options(info["strategies"][strategy]))
params = {**options(info["models"][models[0]]), "result_extension": ".nrrd", "result_dtype": "uint8"}
file, told = client.infer(models[0], sample["id"], params)
original = client.download_label(sample["id"], "original")
names = [{"name": "femur", "idx": 3}, {"name": "tibia", "idx": 4}]
saved = client.save_label(sample["id"], file, params={"label_info": names})
print(json.dumps({"models": models, "strategy": strategy, "sample": sample, "file": file, "original": original,
    "told": told, "saved": saved, "labels": client.info()["models"][models[0]]["labels"],
    "running": client.train_status(check_if_running=True)}))  # fmt: skip
