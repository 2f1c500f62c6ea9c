"""Studies for the tests of the MONAI Label app: knee phantoms in worlds of their own, and the server on them."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import requests
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from scripts.synthetic.phantom import KneePhantom

ROOT = Path(__file__).resolve().parents[3]
APP = ROOT / "integrations" / "monailabel"
PYTHON = os.environ.get("AVSM_LABEL_PYTHON", str(ROOT / ".venv-label" / "bin" / "python"))
LABELS = (1, 2, 3, 4)


def placed(array, affine, angles=(0, 0, 0), shift=(0, 0, 0), order=(0, 1, 2), flip=()):
    """A volume in another place of the world, its axes permuted and flipped: the same knee, another file."""
    world = np.eye(4)
    world[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    world[:3, 3] = shift
    array, axes = array.transpose(order), np.eye(4)
    axes[:3, :3] = np.eye(3)[:, list(order)]
    for axis in flip:
        array = np.flip(array, axis)
        mirror = np.eye(4)
        mirror[axis, axis], mirror[axis, 3] = -1, array.shape[axis] - 1
        axes = axes @ mirror
    return nib.Nifti1Image(np.ascontiguousarray(array), world @ affine @ axes)


def write_studies(folder: Path) -> Path:
    """Two labelled knees, ``atlas`` and ``other``; without labels, ``followup`` (the atlas later) and ``stranger``.

    The true labels of all are in ``truth`` beside the studies.
    """
    fine, coarse = KneePhantom((44, 56, 44)), KneePhantom((36, 48, 52), noise=0.08)
    fixed, moving, _ = fine.pair_warps(7, "longitudinal")
    scans = {
        "atlas": (fine, fixed, 1, {}),
        "other": (fine, fine.subject_warp(23), 2, {"shift": (30, 0, -40)}),
        "followup": (fine, moving, 3, {"shift": (120, -40, 15), "order": (2, 0, 1), "flip": (0,)}),
        "stranger": (coarse, coarse.subject_warp(11), 4, {"angles": (4, -5, 6), "shift": (-60, 20, 300), "flip": (1,)}),
    }
    truth = folder.parent / "truth"
    for place in (folder / "labels" / "final", truth):
        place.mkdir(parents=True)
    for name, (phantom, warp, seed, where) in scans.items():
        image, label = (part.numpy() for part in phantom.scan(warp, seed))
        nib.save(placed((1000 * image).astype(np.int16), phantom.affine, **where), folder / f"{name}.nii.gz")
        nib.save(placed(label, phantom.affine, **where), truth / f"{name}.nii.gz")
        if name in ("atlas", "other"):
            nib.save(placed(label, phantom.affine, **where), folder / "labels" / "final" / f"{name}.nii.gz")
    return folder


def voxels(path: Path) -> np.ndarray:
    """Voxels in SimpleITK's order."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


class Server:
    """The server, started as a user starts it."""

    def __init__(self, studies: Path, log: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url, self.studies, self.log = f"http://127.0.0.1:{self.port}", studies, log
        environment = {**os.environ, "PORT": str(self.port), "AVSM_LABEL_PYTHON": PYTHON}
        with open(log, "w", encoding="utf-8") as stream:
            self.process = subprocess.Popen([str(APP / "start.sh"), str(studies), *options], stdout=stream,
                stderr=subprocess.STDOUT, env=environment, start_new_session=True)  # fmt: skip

    def wait(self, seconds: float = 900) -> None:
        """Until it answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                requests.get(f"{self.url}/info/", timeout=10)
                return
            except requests.ConnectionError:
                time.sleep(0.5)
        raise AssertionError(self.log.read_text()[-3000:])

    def stop(self) -> None:
        """End it and its children."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(20)

    def request(self, method: str, path: str, **options) -> requests.Response:
        return requests.request(method, self.url + path, timeout=options.pop("timeout", 600), **options)

    def infer(self, model: str, image: str, output: str = "json", /, **params) -> requests.Response:
        query = {"image": image, "output": output}
        return self.request("POST", f"/infer/{model}", params=query, files={"params": (None, json.dumps(params))})

    def label(self, image: str, tag: str) -> requests.Response:
        return self.request("GET", "/datastore/label", params={"label": image, "tag": tag})

    def objects(self) -> dict:
        """Images of the datastore with their labels."""
        return self.request("GET", "/datastore/", params={"output": "all"}).json()["objects"]

    def ended(self, path: str) -> dict | None:
        """The last background task of a kind, once it runs no more."""
        status = self.request("GET", path).json()
        return status if status["status"] not in ("SUBMITTED", "RUNNING") else None

    def until(self, what, seconds: float = 900, every: float = 1.0):
        """What a question gives as soon as it gives anything."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = what()
            if found:
                return found
            time.sleep(every)
        raise AssertionError(f"not within {seconds} s; the log ends with\n{self.log.read_text()[-3000:]}")
