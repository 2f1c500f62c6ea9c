"""What the command line and the configs of a build do, frozen as numbers: record them of one build, check another.

    python tests/frozen_behaviour.py record --bundle BUNDLE --output X.json.gz [--only PATTERN]
    python tests/frozen_behaviour.py check --bundle BUNDLE [--baseline X.json.gz] [--only PATTERN]

Nothing of a build is imported here: it is run, and its files are read with SimpleITK, nibabel and numpy. Cases on real
images need AVSM_DATA, the folder of the data sets. `record` keeps every finished case at once and goes on where it was
stopped. `check` ends with status 1 where a number is outside its tolerance; other words for a refusal are only listed.
PATTERN is a part of a case's name, perhaps with wildcards: 'tools', 'register/hippocampus', 'generated*opt'.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

# ---------------------------------------------------------------------------------------------------------------------
# What a redesign may have to change: names of measures, ids of settings, where the command and the weights are.

RENAMED: dict[str, str] = {
    "round_trip_mm": "inverse_consistency_mm",
    "round_trip_voxels": "inverse_consistency_voxels",
    "dice_vsvf": "dice_final",
}
"""Part of a baseline's key → what it is called now; for metrics.json, summary.json and pairs.csv: 'hd95' → 'hd_95'."""

MAIN = "scripts.cli.main", "main"
CHECKPOINT, NETWORK = "checkpoint_last.pt", "network"

SMALL_NETWORK = {"network_def#affine_net#channels": [4, 4], "network_def#momentum_net#channels": [4, 4, 4, 4, 4]}
PHASES = [
    {"name": "affine_single_step", "stage": "affine", "epochs": 2, "affine_steps": 1, "learning_rate": 1e-3},
    {"name": "affine_multi_step", "stage": "affine", "epochs": 2, "affine_steps": 2, "learning_rate": 1e-3},
    {"name": "vsvf", "stage": "vsvf", "epochs": 2, "affine_steps": 2, "vsvf_steps": 2, "learning_rate": 1e-3},
]
LISTED = {"pair_mode": "cross_subject", "train_pairs": 2, "val_section": "registration_val", "val_pairs": 1}
TRAIN = {"threads": 1, "grid": [16, 16, 16], "train_pairs": 3, "epoch_pairs": 2, "val_pairs": 2, "val_interval": 1}
TRAIN |= {"phases": PHASES, **SMALL_NETWORK}
FEATURES = {
    "network_def#features": {"_target_": "scripts.networks.FeatureNet", "classes": 4, "channels": [4, 4]},
    "network_def#affine_net#image_channels": 5,
    "network_def#momentum_net#image_channels": 5,
    "label_weight": 1.0,
    "affine_label_weight": 1.0,
    "affine_target": 1.0,
    "pose": {"still": 0.2, "twins": 0.4, "flow": 0.5},
    "phases": [
        {"name": "features", "stage": "features", "epochs": 2, "affine_steps": 0, "learning_rate": 1e-3},
        {**PHASES[1], "epochs": 1},
        {**PHASES[2], "epochs": 1},
    ],
}
TRAININGS = {  # name -> overrides of configs/train.json, and the ones among them that configs/evaluate.json needs
    "phantom": (TRAIN, SMALL_NETWORK),
    "listed": ({**TRAIN, **LISTED}, SMALL_NETWORK),
    "features": (
        {**TRAIN, **LISTED, **FEATURES},
        {**SMALL_NETWORK, **{key: FEATURES[key] for key in list(FEATURES)[:3]}},
    ),
}
EVALUATE = {"threads": 1, "grid": [16, 16, 16], "affine_steps": 2, "vsvf_steps": 2}

# ---------------------------------------------------------------------------------------------------------------------
# Tolerances: the first rule whose pattern is in a key decides. None: other values are only listed.

RULES = [
    (r"\bline$|^settings|/settings/|warnings", None, 0),
    (r"consistency|round_trip", 0.01, 0.25),
    (r"points$|corners$|displacement", 0.02, 0),  # mm
    (r"dice", 1e-3, 0),
    (r"folds_sum", 1e-2, 0.02),
    (r"fold|status|shape|files|left|names|type|count|values|steps_kept|agree", 0, 0),
    (r"voxels$", 0.05, 0),  # in parts of the image's spread; counts of voxels are named otherwise
    (r"hd95", 0.3, 0),  # mm, in jumps from voxel to voxel
    (r"(jacobian|moved|image).*(min|max)", 0.02, 0.02),
    (r"weights/.*bias", 2e-3, 2e-3),  # before a normalisation they have no gradient but rounding, which Adam follows
    (r"weights/", 1e-5, 2e-3),
    (r"_mm|assd|tre|translation|matrix_ras|origin", 0.02, 1e-3),
    (r"", 1e-3, 2e-3),
]
SKIPPED = re.compile(r"second|time|version|request|sha256|path|date|host|device|memory")


def compare(key, old, new):
    """None, or whether a difference is a failure, and what it is."""
    absolute, relative = next(rule[1:] for rule in RULES if re.search(rule[0], key))
    if old == new:
        return None
    numbers = all(np.asarray(value).dtype.kind in "iufb" for value in (old, new))
    if absolute is None or not numbers or np.shape(old) != np.shape(new):
        return absolute is not None, f"was {str(old)[:300]}, is {str(new)[:300]}"
    a, b = np.asarray(old, float), np.asarray(new, float)
    gap = np.abs(a - b)
    bound = absolute + relative * np.abs(a)
    if key.endswith(("points", "corners")) and gap.ndim == 2:
        gap, bound = np.linalg.norm(gap, axis=-1), absolute
    if (gap <= bound).all():
        return None
    worst = np.unravel_index(np.argmax(gap - bound), gap.shape)
    at = f" at {[int(i) for i in worst]}, {int((gap > bound).sum())} of {gap.size}" if gap.ndim else ""
    return True, f"was {a[worst]}, is {b[worst]} (off by {gap[worst]:.4g}, allowed {absolute} + {relative:g}|x|){at}"


# ---------------------------------------------------------------------------------------------------------------------
# Images made here.


def affine(spacing, origin, angles):
    """(4, 4), voxel to RAS mm."""
    matrix = np.eye(4)
    for axis, angle in enumerate(np.radians(angles)):
        turn, (i, j) = np.eye(3), [(1, 2), (2, 0), (0, 1)][axis]
        turn[[i, j, i, j], [i, j, j, i]] = np.cos(angle), np.cos(angle), -np.sin(angle), np.sin(angle)
        matrix[:3, :3] = turn @ matrix[:3, :3]
    matrix[:3, :3] *= spacing
    matrix[:3, 3] = origin
    return matrix


def places(shape, matrix):
    """RAS mm of all voxels."""
    return np.stack(np.indices(shape), -1) @ matrix[:3, :3].T + matrix[:3, 3]


BODIES = [  # a knee of ellipsoids: centre and radii in mm, brightness, label
    ((0, 0, 16), (22, 20, 18), 380, 1),
    ((0, 0, 15), (17, 15, 13), 240, 2),
    ((2, 1, -18), (20, 18, 15), 420, 3),
    ((1, 21, 6), (9, 6, 11), 300, 4),
]


def scene(points, seed):
    """Image and label map of the bodies at places in mm."""
    image, label = np.full(points.shape[:-1], 60.0), np.zeros(points.shape[:-1], np.uint8)
    for centre, radii, brightness, number in BODIES:
        inside = 1 - np.linalg.norm((points - centre) / np.array(radii), axis=-1)
        weight = 1 / (1 + np.exp(np.clip(-14 * inside, -50, 50)))
        image = (1 - weight) * image + weight * (brightness + 40 * np.sin(points @ (0.5, 0.3, -0.4) + number))
        label[inside > 0] = number
    return image + np.random.default_rng(seed).normal(0, 6, image.shape), label


def bent(points):
    """Where the moving knee's places lie in the fixed knee."""
    turned = points @ affine((1.06, 0.95, 1.02), (0, 0, 0), (3, -4, 6))[:3, :3].T
    return turned + 2.2 * np.stack([np.sin(points[..., (i + 1) % 3] / 13 + i) for i in range(3)], -1)


def write(array, matrix, path):
    image = nib.Nifti1Image(array, matrix, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def centred(shape, spacing, angles, centre=(0, 0, 0)):
    matrix = affine(spacing, (0, 0, 0), angles)
    matrix[:3, 3] = np.array(centre) - matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
    return matrix


def knees(folder, fixed, moving, shift=(12.0, -7.0, 9.0)):
    """Write f and m with labels and masks; fixed, moving: shape, spacing, angles. The moving knee lies elsewhere."""
    for name, (shape, spacing, angles), away in (("f", fixed, np.zeros(3)), ("m", moving, np.array(shift))):
        where = centred(shape, spacing, angles, away)
        points = places(shape, where) - away
        image, label = scene(bent(points) if name == "m" else points, 1 if name == "f" else 2)
        image = np.clip(image, 0, 1000).astype(np.float32 if name == "f" else np.int16)
        write(image, where, folder / f"{name}.nii.gz")
        write(label, where, folder / f"{name}_label.nii.gz")
        write((np.linalg.norm(points, axis=-1) < 24).astype(np.uint8), where, folder / f"{name}_mask.nii.gz")


def pair_of(folder, labels=True):
    return {
        key: str(folder / f"{name}.nii.gz")
        for key, name in (("fixed", "f"), ("moving", "m"), ("fixed_label", "f_label"), ("moving_label", "m_label"))
        if labels or "label" not in key
    }


def generated(folder):
    knees(folder, ((46, 60, 28), (1.1, 0.9, 2.3), (10, -20, 30)), ((52, 44, 40), (1.2, 1.5, 1.4), (-15, 5, 8)))
    return pair_of(folder)


def hippocampus(folder, number=0):
    root = Path(os.environ["AVSM_DATA"]) / "Task04_Hippocampus"
    chosen = json.loads((root / "dataset.json").read_bytes())["registration_val"][number]
    pair = {key: str((root / chosen[key]).resolve()) for key in ("fixed", "moving")}
    return pair | {f"{key}_label": path.replace("imagesTr", "labelsTr") for key, path in pair.items()}


def liver(folder):
    root = Path(os.environ["AVSM_DATA"]) / "eth_liver_4dmri"
    return {"fixed": str(root / "liver18_exhMaster.mha"), "moving": str(root / "liver18_cyc_3_10.mha")}


def brain(folder):
    for name, source in (("f", "mni2009c_brain"), ("m", "colin27_brain")):
        image = sitk.ReadImage(str(Path(os.environ["AVSM_DATA"]) / "brain_templates" / f"{source}.nii.gz"))
        image = sitk.SmoothingRecursiveGaussian(sitk.Cast(image, sitk.sitkFloat32), 1.0)
        size = [int(np.ceil(n * s / 2)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
        coarse = sitk.Resample(
            image, size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), [2.0] * 3, image.GetDirection()
        )
        sitk.WriteImage(coarse, str(folder / f"{name}.nii.gz"))
    return pair_of(folder, labels=False)


def brain_whole(folder):
    root = Path(os.environ["AVSM_DATA"]) / "brain_templates"
    return {"fixed": str(root / "mni2009c_brain.nii.gz"), "moving": str(root / "colin27_brain.nii.gz")}


PAIRS = {"hippocampus": hippocampus, "generated": generated, "liver": liver, "brain": brain, "brain whole": brain_whole}


def tools_folder(folder):
    """A small pair with a transform, moved images, points, all made here."""
    knees(folder, ((20, 23, 18), (2.2, 2.0, 3.0), (12, -25, 40)), ((17, 25, 22), (2.6, 2.0, 2.4), (-30, 8, 15)))
    fixed = sitk.ReadImage(str(folder / "f.nii.gz"))
    field = np.stack([1.5 * np.sin(np.indices(fixed.GetSize()[::-1])[i] / 4 + i) for i in range(3)], -1)
    displacement = sitk.GetImageFromArray(field, isVector=True)
    displacement.CopyInformation(fixed)
    sitk.WriteImage(displacement, str(folder / "warp.nii.gz"))
    part = sitk.AffineTransform(3)
    part.SetMatrix((affine((1.05, 0.97, 1.0), (0, 0, 0), (4, 2, -5))[:3, :3]).ravel().tolist())
    part.SetTranslation([-12.0, 7.0, 9.0])
    both = sitk.CompositeTransform([part, sitk.DisplacementFieldTransform(displacement)])
    sitk.WriteTransform(part, str(folder / "affine.tfm"))
    sitk.WriteTransform(both, str(folder / "transform.h5"))
    for name, mode in (("moved", sitk.sitkLinear), ("moved_label", sitk.sitkNearestNeighbor)):
        source = folder / f"{name.replace('moved', 'm')}.nii.gz"
        image = sitk.Resample(sitk.ReadImage(str(source)), fixed, both, mode, 0.0)
        sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))
    points = fixed_points(folder / "f.nii.gz", 12)
    there = np.array([both.TransformPoint(point) for point in points.tolist()]) + 0.5
    for name, rows in (("f", points), ("m", there)):
        (folder / f"{name}.csv").write_text("x,y,z\n" + "".join(f"{x},{y},{z}\n" for x, y, z in rows.tolist()))


def dataset_folder(folder):
    """A data set in Learn2Reg's layout: two knees for training, which are the validation pair as well."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    with tempfile.TemporaryDirectory() as made:
        made = Path(made)
        knees(made, ((20, 18, 16), (2.6, 3.0, 4.4), (0, 0, 0)), ((20, 18, 16), (2.6, 3.0, 4.4), (0, 0, 0)), (0, 0, 0))
        for name in "fm":
            (folder / "imagesTr" / f"{name}.nii.gz").write_bytes((made / f"{name}.nii.gz").read_bytes())
            (folder / "labelsTr" / f"{name}.nii.gz").write_bytes((made / f"{name}_label.nii.gz").read_bytes())
    entries = [
        {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz", "subject": name} for name in "fm"
    ]
    pairs = [{"fixed": "imagesTr/f.nii.gz", "moving": "imagesTr/m.nii.gz"}]
    listing = {"name": "knees", "numTraining": 2, "training": entries, "registration_val": pairs}
    (folder / "dataset.json").write_text(json.dumps(listing))


# ---------------------------------------------------------------------------------------------------------------------
# Running a build, and reading what it has written.


class Build:
    def __init__(self, bundle):
        self.bundle = Path(bundle).resolve()
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.environment.pop("PYTHONPATH", None)
        found = self.python("-c", "import scripts; print(scripts.__file__)").stdout.strip()
        assert Path(found).is_relative_to(self.bundle), f"{found} is not below {self.bundle}"

    def python(self, *words, status=0):
        line, text = [sys.executable, *map(str, words)], {"encoding": "utf-8", "errors": "replace"}
        done = subprocess.run(line, cwd=self.bundle, env=self.environment, capture_output=True, **text)
        if done.returncode != status:
            raise RuntimeError(f"status {done.returncode} of {words[:6]}: {done.stderr[-1500:]}")
        return done

    def avsm(self, *words):
        return self.python("-m", "scripts.cli", *words)

    def config(self, name, overrides, folder, *words):
        """Command line of a config with overrides from a file."""
        override = folder / f"override_{name}.json"
        override.write_text(json.dumps(overrides))
        files = json.dumps([f"configs/{name}.json", "models/general.json", str(override)])
        run_id = ["training"] if name == "train" else []
        line = ["-m", "monai.bundle", "run", *run_id, "--meta_file", "configs/metadata.json", "--config_file", files]
        return [*line, *map(str, words)]

    def worker(self, jobs):
        """Results of many short commands, all in one process: status, standard output, standard error."""
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "jobs.json").write_text(json.dumps(jobs))
            self.python("-c", WORKER, folder, *MAIN)
            return json.loads((Path(folder) / "results.json").read_bytes())


WORKER = """
import contextlib, importlib, io, json, logging, os, sys, traceback
folder, module, name = sys.argv[1:]
bundle = sys.path[0] = os.getcwd()
main = getattr(importlib.import_module(module), name)

def bundled(job):
    sys.excepthook = sys.__excepthook__
    try:
        from monai.bundle import ConfigWorkflow
        files = [bundle + "/configs/" + job["config"] + ".json", bundle + "/models/general.json", job["override"]]
        found = ConfigWorkflow(config_file=files,
            meta_file=bundle + "/configs/metadata.json", logging_file=False, bundle_root=bundle,
            workflow_type="train" if job["config"] == "train" else "infer")
        found.initialize()
        found.run()
        found.finalize()
        return 0
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1

results = []
for job in json.load(open(folder + "/jobs.json")):
    os.chdir(job["folder"])
    kept, texts = [os.dup(1), os.dup(2)], []
    for number, path in ((1, "/out"), (2, "/err")):
        target = os.open(folder + path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, number)
        os.close(target)
    try:
        status = bundled(job) if "config" in job else main(job["words"])
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = -1
    sys.stdout.flush()
    sys.stderr.flush()
    for number, path in ((1, "/out"), (2, "/err")):
        os.dup2(kept[number - 1], number)
        os.close(kept[number - 1])
        texts.append(open(folder + path, encoding="utf-8", errors="replace").read())
    results.append([status, *texts])
json.dump(results, open(folder + "/results.json", "w"))
"""


def flat(value, name):
    """Numbers, switches and lists of numbers of nested JSON by path."""
    if SKIPPED.search(name.rpartition("/")[2]):
        return {}
    if isinstance(value, dict):
        return {k: v for key, entry in value.items() for k, v in flat(entry, f"{name}/{key}").items()}
    if isinstance(value, list) and not all(isinstance(entry, (int, float, list)) for entry in value):
        if all(isinstance(entry, str) for entry in value):
            return {name: value}
        return {k: v for i, entry in enumerate(value) for k, v in flat(entry, f"{name}/{i}").items()}
    return {name: value} if not isinstance(value, str) or "settings" in name else {}


def table(path, name):
    """The numbers of a CSV table."""
    found = {}
    with open(path, newline="", encoding="utf-8") as stream:
        for i, row in enumerate(csv.DictReader(stream)):
            for key, text in row.items():
                if key and text and re.fullmatch(r"-?[\d.]+(e[-+]?\d+)?", text) and not SKIPPED.search(key):
                    found[f"{name}/{i}/{key}"] = float(text)
    return found


def random_voxels(shape, count, seed=0):
    return np.random.default_rng(seed).integers(0, shape, (count, 3))


def rounded(array, digits=4):
    return np.round(np.asarray(array, float), digits).tolist()


@cache
def image_at(path):
    return sitk.ReadImage(path)


def fixed_points(path, count=200):
    """Seeded voxels of an image, LPS mm."""
    image = image_at(str(path))
    index = random_voxels(image.GetSize(), count)
    return np.array([image.TransformIndexToPhysicalPoint(row) for row in index.tolist()])


def through(transform, points):
    return np.array([transform.TransformPoint(point) for point in points.tolist()])


def volume(path, name, label=False):
    """What is kept of an image: shape, type, grid, and statistics with some voxels, or counts of labels."""
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image).T.astype(float)
    kept = {f"{name} shape": list(array.shape), f"{name} type": image.GetPixelIDTypeAsString()}
    corners = [image.TransformIndexToPhysicalPoint(i) for i in ((0, 0, 0), tuple(n - 1 for n in image.GetSize()))]
    kept[f"{name} corners"] = rounded(corners, 3)
    if label:
        values, counts = np.unique(array, return_counts=True)
        size = float(array.size)
        return kept | {f"{name} values": values.tolist(), f"{name} parts": rounded(counts / size, 6)}
    some = array[tuple(random_voxels(array.shape, 40).T)]
    scale = max(array.std(), 0.2 * abs(array.mean())) or 1.0
    kept |= {f"{name} {what}": float(getattr(array, what)()) for what in ("mean", "std", "min", "max")}
    return kept | {f"{name} voxels": rounded(some / scale)}


def dice(one, other):
    a, b = (np.asarray(nib.load(path).dataobj) for path in (one, other))
    labels = [int(v) for v in np.unique(a) if v]
    return {
        f"own dice/{v}": round(float(2 * ((a == v) & (b == v)).sum() / ((a == v).sum() + (b == v).sum())), 6)
        for v in labels
    }


def measured(out, pair):
    """Everything that is kept of a registration's folder."""
    transform = sitk.ReadTransform(str(out / "transform.h5"))
    points = fixed_points(pair["fixed"])
    there = through(transform, points)
    inverse = sitk.ReadTransform(str(out / "inverse_transform.h5"))
    part = sitk.ReadTransform(str(out / "affine.tfm"))
    fixed = image_at(pair["fixed"])
    ends = [(np.array(i) * (np.array(fixed.GetSize()) - 1)).tolist() for i in np.ndindex(2, 2, 2)]
    corners = [fixed.TransformIndexToPhysicalPoint(i) for i in ends]
    offset = np.array(part.TransformPoint((0.0, 0.0, 0.0)))
    matrix = [(np.array(part.TransformPoint(axis.tolist())) - offset).tolist() for axis in np.eye(3)]
    found = {
        "files": sorted(path.name for path in out.iterdir()),
        "transform points": rounded(there, 3),
        "inverse points": rounded(through(inverse, fixed_points(pair["moving"])), 3),
        "affine corners": rounded(through(part, np.array(corners)), 3),
        "affine matrix": rounded(np.transpose(matrix), 6),
    }
    field = np.asarray(nib.load(out / "displacement.nii.gz").dataobj)
    at = field[tuple(random_voxels(fixed.GetSize(), 200).T)].reshape(200, 3)
    found["displacement less transform"] = round(float(np.abs(at - (there - points)).max()), 5)
    found["displacement some points"] = rounded(at[:20], 3)
    found |= volume(out / "moved.nii.gz", "moved") | volume(out / "jacobian.nii.gz", "jacobian")
    if "moving_label" in pair:
        found |= volume(out / "moved_label.nii.gz", "moved_label", label=True)
        found |= dice(pair["fixed_label"], out / "moved_label.nii.gz")
    return found | flat(json.loads((out / "metrics.json").read_bytes()), "metrics")


def tables(out):
    """The table of pairs and its summary."""
    return table(out / "pairs.csv", "pairs") | flat(json.loads((out / "summary.json").read_bytes()), "summary")


# ---------------------------------------------------------------------------------------------------------------------
# Cases: registrations.


@cache
def made(name):
    """A pair's files by name; kept as long as this process runs."""
    made.folders = [*getattr(made, "folders", []), tempfile.TemporaryDirectory()]
    return PAIRS[name](Path(made.folders[-1].name))


def options_of(pair):
    return [word for key, path in pair.items() for word in (f"--{key.replace('_', '-')}", path)]


# Method and initialisation are those that were the defaults.
DEFAULTS = {"--method": ["--method", "avsm"], "--initialisation": ["--initialisation", "geometry"]}
QUIET = ("--no-report", "--threads", "1", "--seed", "0")


def plainly(*options):
    """Options, and the defaults of those days for what they leave open."""
    return [*options, *(word for name, words in DEFAULTS.items() if name not in options for word in words)]


def register(name, *options, common=QUIET, masks=False):
    def run(build, folder):
        pair = made(name)
        extra = []
        if masks:
            extra = [w for n in ("fixed", "moving") for w in (f"--{n}-mask", pair[n].replace(".nii", "_mask.nii"))]
        build.avsm("register", *options_of(pair), *extra, *plainly(*options), *common, "--output", folder / "out")
        found = measured(folder / "out", pair) | tables(folder / "out")
        reports = [file for file in found["files"] if "report" in file]
        return found | {f"files {file}": (folder / "out" / file).stat().st_size > 10000 for file in reports}

    return run


def listed(build, folder):
    """Two pairs by a list, one of them with its images exchanged."""
    first = made("generated")
    second = {key: first[key.replace(*exchange)] for key in first for exchange in [EXCHANGE[key.split("_")[0]]]}
    rows = [",".join(["name", *first]), ",".join(["one", *first.values()]), ",".join(["two", *second.values()])]
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    build.avsm("register", "--pairs", folder / "list.csv", *plainly(), *QUIET, "--output", folder / "out")
    found = tables(folder / "out") | {"files": sorted(path.name for path in (folder / "out").iterdir())}
    for name, pair in (("one", first), ("two", second)):
        found |= {f"{name}: {key}": value for key, value in measured(folder / "out" / name, pair).items()}
    return found


EXCHANGE = {"fixed": ("fixed", "moving"), "moving": ("moving", "fixed")}
NETWORKS = ("general", "hippocampus", "hippocampus_labels", "knee", "phantom")
METHODS = ("affine-opt", "vsvf-opt")
WAYS = {n: ([] if n == "general" else ["--model", n]) for n in NETWORKS} | {m: ["--method", m] for m in METHODS}
CASES = {f"register/{p}/{w}": register(p, *words) for p in ("hippocampus", "generated") for w, words in WAYS.items()}
CASES |= {
    "register/hippocampus/optimised": register("hippocampus", "--optimisation-steps", "20"),
    "register/generated/affine only": register("generated", "--affine-only"),
    "register/generated/moments": register("generated", "--initialisation", "moments"),
    "register/generated/masks": register("generated", masks=True),
    "register/generated/report": register("generated", common=QUIET[1:]),
    "register/generated/other outputs": register(
        "generated", "--learn2reg", "--dtype", "same", "--interpolation", "bspline", "--label-interpolation", "linear"
    ),
    "register/generated/own extent": register("generated", "--extent", "own", "--grid", "40", "48", "40"),
    "register/generated/list": listed,
}

# ---------------------------------------------------------------------------------------------------------------------
# Cases: apply, jacobian, evaluate.

T, R = ["--transform", "transform.h5"], ["--reference", "f.nii.gz"]
LPS = ["--space", "LPS"]
IMAGE, LABEL = ["--input", "m.nii.gz"], ["--label", "--input", "m_label.nii.gz"]
TOOLS = {  # name -> words, output, kind of output
    "apply image": (["apply", *T, *R, *IMAGE, "--default-value", "-3"], "o.nii.gz", "image"),
    "apply bspline": (["apply", *T, *R, *IMAGE, "--interpolation", "bspline"], "o.mha", "image"),
    "apply int16": (["apply", *T, *R, *IMAGE, "--dtype", "int16"], "o.nrrd", "image"),
    "apply label": (["apply", *T, *R, *LABEL], "o.nii.gz", "label"),
    "apply label linear": (["apply", *T, *R, *LABEL, "--interpolation", "label-linear"], "o2.nii.gz", "label"),
    "apply label inverse": (
        ["apply", *T, "--inverse", "--reference", "m.nii.gz", "--label", "--input", "f_label.nii.gz"],
        "o.nii.gz", "label"
    ),
    "apply image inverse": (
        ["apply", *T, "--inverse", "--reference", "m.nii.gz", "--input", "f.nii.gz"], "o.nii.gz", "image"
    ),
    "apply two": (["apply", "--transform", "warp.nii.gz", "affine.tfm", *R, *IMAGE], "o.nii.gz", "image"),
    "apply points": (["apply", *T, *LPS, "--input", "f.csv"], "o.csv", "points"),
    "apply points inverse": (["apply", *T, "--inverse", *LPS, "--input", "m.csv"], "o.csv", "points"),
    "apply points RAS": (["apply", *T, "--space", "RAS", "--input", "f.csv"], "o.csv", "points"),
    "apply points vtk": (["apply", *T, *LPS, "--input", "f.csv"], "o.vtk", None),
    "apply points of vtk": (["apply", *T, *LPS, "--input", "o.vtk"], "o.mrk.json", None),
    "apply points of json": (["apply", *T, *LPS, "--input", "o.mrk.json"], "o.csv", "points"),
    "jacobian": (["jacobian", *T, *R], "o.nii.gz", "image"),
    "jacobian log": (["jacobian", *T, *R, "--log"], "o.nii.gz", "image"),
    "jacobian two": (["jacobian", *T, "--transform", "affine.tfm", *R], "o.nii.gz", "image"),
    "evaluate": (
        [*["evaluate", *T, *R, "--fixed", "f.nii.gz", "--moved", "moved.nii.gz", "--fixed-label", "f_label.nii.gz"],
         *["--moved-label", "moved_label.nii.gz", "--fixed-points", "f.csv", "--moving-points", "m.csv", *LPS]],
        "o.json", "json"
    ),
    "evaluate mask": (
        ["evaluate", "--fixed", "f.nii.gz", "--moved", "moved.nii.gz", "--mask", "f_mask.nii.gz"], "o.json", "json"
    ),
    "evaluate some labels": (
        ["evaluate", "--fixed-label", "f_label.nii.gz", "--moved-label", "moved_label.nii.gz", "--labels", "2", "99"],
        "o.json", "json"
    ),
}  # fmt: skip


def kept_of(path, kind, output):
    """The numbers of one output file, and of what the command has printed where that is JSON."""
    found = flat(json.loads(output), "printed") if output.startswith("{") else {}
    if kind == "points":
        rows = [[float(v) for v in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", r)[-3:]] for r in path.read_text().split()[1:]]
        return found | {"points": rounded(rows, 4)}
    if kind == "json":
        return found | flat(json.loads(path.read_bytes()), "json")
    return found | (volume(path, kind, kind == "label") if kind else {})


def tools(build, folder):
    """On files made here: they do not depend on a registration."""
    tools_folder(folder)
    names = {key: f"{i:02d}{output}" for i, (key, (_, output, _)) in enumerate(TOOLS.items())}
    last, jobs = {}, []
    for key, (words, output, _) in TOOLS.items():
        words = [last.get(word, word) for word in words]
        jobs.append({"folder": str(folder), "words": [*words, "--output", names[key]]})
        last[output] = names[key]
    found = {}
    for key, (status, output, error) in zip(TOOLS, build.worker(jobs), strict=True):
        found |= {f"{key}: status": status, f"{key}: line": error.replace(names[key], "OUTPUT")}
        if status == 0:
            kept = kept_of(folder / names[key], TOOLS[key][2], output)
            found |= {f"{key}: {name}": value for name, value in kept.items()}
    return found


def tools_on_result(build, folder):
    """On what a registration has left."""
    pair, out = made("generated"), folder / "out"
    build.avsm("register", *options_of(pair), *plainly(), *QUIET, "--output", out)
    t, there = ["--transform", str(out / "transform.h5")], ["--reference", pair["fixed"]]
    label = ["--label", "--input"]
    runs = {
        "image": ["apply", *t, *there, "--input", pair["moving"], "--output", "i.nii.gz"],
        "label": ["apply", *t, *there, *label, pair["moving_label"], "--output", "l.nii.gz"],
        "back": ["apply", *t, "--inverse", "--reference", pair["moving"], *label, pair["fixed_label"]],
        "jacobian": ["jacobian", *t, *there, "--output", "j.nii.gz"],
        "evaluate": ["evaluate", *t, *there, "--fixed-label", pair["fixed_label"], "--output", "e.json"],
    }
    runs["back"] += ["--output", "b.nii.gz"]
    runs["evaluate"] += ["--moved-label", "l.nii.gz", "--fixed", pair["fixed"], "--moved", "i.nii.gz"]
    results = build.worker([{"folder": str(folder), "words": words} for words in runs.values()])
    found = {f"{name}: status": result[0] for name, result in zip(runs, results, strict=True)}
    one, two = (np.asarray(nib.load(path).dataobj) for path in (folder / "i.nii.gz", out / "moved.nii.gz"))
    found["image less moved"] = float(np.abs(one - two).max() / two.std())
    found |= dice(pair["moving_label"], folder / "b.nii.gz") | volume(folder / "j.nii.gz", "jacobian")
    one, two = (np.asarray(nib.load(path).dataobj) for path in (folder / "l.nii.gz", out / "moved_label.nii.gz"))
    found["label other than moved"] = float((one != two).mean())
    found |= flat(json.loads(results[3][1]), "printed")
    return found | flat(json.loads((folder / "e.json").read_bytes()), "json")


CASES |= {"tools/made here": tools, "tools/on a result": tools_on_result}

# ---------------------------------------------------------------------------------------------------------------------
# Cases: bad input. What makes a file, and the words; the folder is that of `tools_folder`.


def put(name, content=b""):
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def nothing(folder):
    pass


def nifti(array=None, matrix=None, **fields):
    """Bytes of a NIfTI file, with fields of its header overwritten."""
    array = np.random.default_rng(0).integers(0, 100, (6, 7, 8)).astype(np.int16) if array is None else array
    image = nib.Nifti1Image(array, np.diag((1.0, 2.0, 3.0, 1.0)) if matrix is None else matrix, dtype=array.dtype)
    data = bytearray(image.to_bytes())
    header = np.frombuffer(data, image.header.template_dtype, 1)[0]
    for name, value in fields.items():
        if np.ndim(value):
            header[name][: len(value)] = value
        else:
            header[name] = value
    return bytes(data)


def text_image(kind, **fields):
    """Bytes of a MetaImage or NRRD file."""
    values = {
        "mha": {
            "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "TransformMatrix": "1 0 0 0 1 0 0 0 1",
            "Offset": "4 5 6", "ElementSpacing": "1 2 3", "DimSize": "6 7 8", "ElementType": "MET_SHORT",
            "ElementDataFile": "LOCAL",
        },
        "nrrd": {
            "type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "6 7 8", "endian": "little",
            "space directions": "(1,0,0) (0,2,0) (0,0,3)", "encoding": "raw", "space origin": "(4,5,6)",
        },
    }[kind]  # fmt: skip
    values |= {key.replace("__", " "): value for key, value in fields.items()}
    middle, head, end = (" = ", "", "") if kind == "mha" else (": ", "NRRD0004\n", "\n")
    text = head + "".join(f"{key}{middle}{value}\n" for key, value in values.items()) + end
    return text.encode() + np.random.default_rng(0).integers(0, 100, 336).astype(np.int16).tobytes()


def edited(source, change, name, dtype=np.float32, shift=0.0):
    """Write what becomes of a file's array, perhaps at another place."""

    def spoil(folder):
        image = nib.load(folder / source)
        matrix = image.affine + np.pad([[shift]], ((0, 3), (3, 0)))
        write(np.asarray(change(np.asarray(image.dataobj).astype(np.float64)), dtype), matrix, folder / name)

    return spoil


def value(number):
    def change(array):
        array[3, 4, 5] = number
        return array

    return change


CT = "1.2.840.10008.5.1.4.1.1.2"


def dicom(*series):
    """Write DICOM series; each: UID and the places of its slices."""

    def spoil(folder):
        (folder / "dicom").mkdir()
        for uid, slices in series:
            writer = sitk.ImageFileWriter()
            writer.KeepOriginalImageUIDOn()
            for i, place in enumerate(slices):
                image = sitk.GetImageFromArray(np.full((1, 7, 6), i, np.int16) + np.arange(6, dtype=np.int16))
                image.SetSpacing((0.7, 1.1, 2.5))
                tags = {"0008|0060": "CT", "0020|000e": uid, "0020|000d": "1.2.3", "0020|0013": str(i + 1)}
                tags |= {"0020|0032": f"-10\\20\\{30 + 2.5 * place}", "0020|0037": "1\\0\\0\\0\\1\\0"}
                tags |= {"0008|0018": f"{uid}.{i}", "0008|103e": f"series {uid}", "0008|0016": CT}
                for tag, text in tags.items():
                    image.SetMetaData(tag, text)
                writer.SetFileName(str(folder / "dicom" / f"s{uid.replace('.', '')}_{i:03d}.dcm"))
                writer.Execute(image)

    return spoil


def other_weights(folder):
    import torch

    torch.save({"other.weight": torch.zeros(3)}, folder / "other.pt")


def in_output(name, content=None):
    """An output folder that holds a file which is read as well."""

    def spoil(folder):
        (folder / "out").mkdir()
        (folder / "out" / name).write_bytes((folder / "m.nii.gz").read_bytes() if content is None else content)

    return spoil


def spline(folder):
    sitk.WriteTransform(sitk.BSplineTransform(3), str(folder / "s.h5"))


def cut_off(folder):
    (folder / "c.h5").write_bytes((folder / "transform.h5").read_bytes()[:-64])


def itk_text(kind, parameters, fixed):
    head = f"#Insight Transform File V1.0\n#Transform 0\nTransform: {kind}\n"
    return put("t.tfm", f"{head}Parameters: {parameters}\nFixedParameters: {fixed}\n")


def small(name, array):
    return lambda folder: write(np.asarray(array, np.uint8), np.eye(4), folder / name)


def directory(name):
    return lambda folder: (folder / name).mkdir()


RGB = np.zeros((6, 7, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])
SHEAR = np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
ZERO = put("t.nii", nifti(sform_code=0, qform_code=1, pixdim=[1, 0, 2, 3]))
FOUR_D, FLAT = (put("t.nii", nifti(np.arange(np.prod(s)).reshape(s).astype(np.int16))) for s in ((6, 7, 8, 2), (6, 7)))
COLOUR = put("t.nii", nifti(RGB))
PAIR, OUT = ["--fixed", "f.nii.gz", "--moving", "m.nii.gz"], ["--output", "out"]
IMAGES = {  # name -> what makes the file, the moving image
    "missing": (nothing, "no.nii.gz"),
    "empty": (put("e.nii.gz"), "e.nii.gz"),
    "truncated": (put("t.nii.gz", gzip.compress(nifti(), mtime=0)[:-400]), "t.nii.gz"),
    "no gzip": (put("t.nii.gz", b"no gzip"), "t.nii.gz"),
    "no image": (put("t.nii.gz", gzip.compress(b"no image")), "t.nii.gz"),
    "voxels cut off": (put("t.nii", nifti()[:-100]), "t.nii"),
    "kind of file": (put("t.png", b"\x89PNG"), "t.png"),
    "one DICOM file": (put("t.dcm", b"x"), "t.dcm"),
    "NaN": (edited("m.nii.gz", value(np.nan), "t.nii.gz"), "t.nii.gz"),
    "infinity": (edited("m.nii.gz", value(np.inf), "t.nii.gz"), "t.nii.gz"),
    "beyond float32": (edited("m.nii.gz", value(-1e300), "t.nii.gz", np.float64), "t.nii.gz"),
    "end of float32": (edited("m.nii.gz", value(3e38), "t.nii.gz"), "t.nii.gz"),
    "constant": (edited("m.nii.gz", np.ones_like, "t.nii.gz"), "t.nii.gz"),
    "2-D": (FLAT, "t.nii"),
    "4-D": (FOUR_D, "t.nii"),
    "one slice": (put("t.nii", nifti(np.arange(42, dtype=np.int16).reshape(6, 7, 1))), "t.nii"),
    "RGB": (COLOUR, "t.nii"),
    "complex": (put("t.nii", nifti(np.arange(336).reshape(6, 7, 8).astype(np.complex64))), "t.nii"),
    "spacing 0, qform": (ZERO, "t.nii"),
    "spacing 0, sform": (put("t.nii", nifti(sform_code=1, srow_x=[0] * 4)), "t.nii"),
    "spacing 0, NRRD": (
        put("t.nrrd", text_image("nrrd", space__directions="(0,0,0) (0,2,0) (0,0,3)")), "t.nrrd"
    ),
    "spacing below 0": (put("t.mha", text_image("mha", ElementSpacing="-1 2 3")), "t.mha"),
    "spacing NaN": (put("t.mha", text_image("mha", ElementSpacing="nan 2 3")), "t.mha"),
    "singular direction": (put("t.mha", text_image("mha", TransformMatrix="1 0 0 1 0 0 0 0 1")), "t.mha"),
    "shear": (put("t.nii", nifti(matrix=SHEAR)), "t.nii"),
    "data file missing": (put("t.mhd", text_image("mha", ElementDataFile="t.raw")[:-672]), "t.mhd"),
    "folder without DICOM": (directory("dicom"), "dicom"),
    "two DICOM series": (dicom(("1.2.3.4.5", range(8)), ("9.9", range(20, 28))), "dicom"),
    "DICOM slice missing": (dicom(("1.2.3.4.5", [0, 1, 2, 4, 5, 6, 7, 8])), "dicom"),
    "DICOM slice twice": (dicom(("1.2.3.4.5", [0, 1, 2, 2, 3, 4, 5, 6])), "dicom"),
}  # fmt: skip
MOVING_LABEL = ["--moving-label", "t.nii.gz"]
SETTINGS = {  # name -> what makes a file, words after the pair and the output
    "label on another grid": (nothing, ["--fixed-label", "m_label.nii.gz"]),
    "label elsewhere": (edited("m_label.nii.gz", np.array, "t.nii.gz", shift=2), MOVING_LABEL),
    "label with fractions": (edited("m_label.nii.gz", lambda array: array / 2, "t.nii.gz"), MOVING_LABEL),
    "label of NaN": (edited("m_label.nii.gz", value(np.nan), "t.nii.gz"), MOVING_LABEL),
    "label beyond 32 bits": (edited("m_label.nii.gz", value(2**40), "t.nii.gz", np.float64), MOVING_LABEL),
    "label missing": (nothing, ["--fixed-label", "no.nii.gz"]),
    "mask empty": (edited("f_mask.nii.gz", np.zeros_like, "t.nii.gz"), ["--fixed-mask", "t.nii.gz"]),
    "mask on another grid": (nothing, ["--moving-mask", "f_mask.nii.gz"]),
    "mask 4-D": (FOUR_D, ["--fixed-mask", "t.nii"]),
    "no overlap": (
        edited("m.nii.gz", np.array, "far.nii.gz", shift=500), ["--moving", "far.nii.gz", "--initialisation", "header"]
    ),
    "type of the result": (nothing, ["--dtype", "uint8"]),
    "sign of the result": (edited("m.nii.gz", value(-1), "t.nii.gz"), ["--moving", "t.nii.gz", "--dtype", "uint16"]),
    "over the moving image": (in_output("moved.nii.gz"), ["--moving", "out/moved.nii.gz"]),
    "over the fixed image": (in_output("jacobian.nii.gz"), ["--fixed", "out/jacobian.nii.gz"]),
    "over a mask": (
        in_output("moved_label.nii.gz"), ["--fixed", "m.nii.gz", "--fixed-mask", "./out/../out/moved_label.nii.gz"]
    ),
    "output is a file": (nothing, ["--output", "f.nii.gz"]),
    "output below a file": (nothing, ["--output", "f.nii.gz/out"]),
    "output is a file, weights missing": (nothing, ["--output", "f.nii.gz", "--weights", "no.pt"]),
    "weights missing": (nothing, ["--weights", "no.pt"]),
    "weights empty": (put("t.pt"), ["--weights", "t.pt"]),
    "weights unreadable": (nothing, ["--weights", "f.nii.gz"]),
    "weights of another network": (other_weights, ["--weights", "other.pt"]),
    "device absent": (nothing, ["--device", "cuda:97"]),
    "device unknown": (nothing, ["--device", "gpu"]),
    "device without numbers": (nothing, ["--device", "meta"]),
    "seed too large": (nothing, ["--seed", str(2**40)]),
    "grid too large": (nothing, ["--grid", "900", "900", "900"]),
    "grid voxels": (nothing, ["--grid-voxels", "999999999"]),
}  # fmt: skip
USAGE = {  # words after `avsm register --output out`
    "no image": [],
    "fixed alone": PAIR[:2],
    "pair and list": [*PAIR, "--pairs", "list.csv"],
    "mask and list": ["--fixed-mask", "x", "--pairs", "list.csv"],
    "section of no list": [*PAIR, "--section", "training"],
    "section no name": ["--pairs", "list.csv", "--section", "$1 / 0"],
    "two outputs": [*PAIR, "other"],
    "empty path": ["--fixed", "", "--moving", "m.nii.gz"],
    "empty output": [*PAIR, "--output", " "],
    "unknown home": [*PAIR[:3], "~nobody.at.home/m.nii"],
    "grid twice": [*PAIR, "--grid", "8", "8", "8", "--grid-voxels", "5000"],
    "grid of two": [*PAIR, "--grid", "16", "16"],
    "network's option": [*PAIR, "--method", "affine-opt", "--affine-steps", "3"],
    "affine of vsvf-opt": [*PAIR, "--method", "vsvf-opt", "--affine-only"],
} | {
    " ".join(words): [*PAIR, *words]
    for words in [
        ["--sideways"], ["--affine"], ["--initialisation", "centre"], ["--extent", "all"], ["--interpolation", "cubic"],
        ["--label-interpolation", "bspline"], ["--dtype", "complex64"], ["--dtype", "@grid"], ["--device", "$x"],
        ["--threads", "0"], ["--seed", "-1"], ["--seed", "one"], ["--affine-steps", "-1"], ["--vsvf-steps", "1.5"],
        ["--optimisation-steps", "-7"], ["--grid", "16", "2", "16"], ["--grid-voxels", "5"], ["--method", "none"],
        ["--model", "none"],
    ]
}  # fmt: skip
GOOD = "f.nii.gz,m.nii.gz"
LISTS = {  # name -> text of list.csv
    "empty": "",
    "no pair": "fixed,moving\n",
    "no column": "fixed\nf.nii.gz\n",
    "unknown column": f"fixed,moving,pears\n{GOOD},1\n",
    "cells": f"fixed,moving\n{GOOD},more\n",
    "absent file": f"fixed,moving\n{GOOD}\nf.nii.gz,no.nii\n",
    "names twice": f"fixed,moving,name\n{GOOD},a\n{GOOD},a\n",
    "no file name": f"fixed,moving,name\n{GOOD},a/b\n",
    "no text": b"\xff\xfe\x00\x01",
    "bad pair": "fixed,moving\nf.nii.gz,f.csv\n",
}
REGISTER = {f"image, {name}": (make, [*PAIR[:3], file, *OUT]) for name, (make, file) in IMAGES.items()}
REGISTER |= {f"setting, {name}": (make, [*PAIR, *OUT, *words]) for name, (make, words) in SETTINGS.items()}
REGISTER |= {f"usage, {name}": (nothing, [*OUT, *words]) for name, words in USAGE.items()}
REGISTER |= {f"list, {name}": (put("list.csv", text), ["--pairs", "list.csv", *OUT]) for name, text in LISTS.items()}
REGISTER |= {
    "list, missing": (nothing, ["--pairs", "no.csv", *OUT]),
    "list, overwritten": (
        in_output("pairs.csv", b"fixed,moving\n../f.nii.gz,../m.nii.gz\n"), ["--pairs", "out/pairs.csv", *OUT]
    ),
}  # fmt: skip

TWO_D = itk_text("AffineTransform_double_2_2", "1 0 0 1 0 0", "0 0")
SINGULAR = itk_text("AffineTransform_double_3_3", "1 0 0 0 1 0 0 0 0 0 0 0", "0 0 0")
NAN_POINTS = put("p.csv", "x,y,z\n1,2,nan\n")
TO = ["--output", "o.nii.gz"]
MOVE = ["apply", *R, *IMAGE, *TO, "--transform"]
BY = ["apply", *T, *R]
JACOBIAN = ["jacobian", *R, "--output", "j.nii.gz", "--transform"]
LABELS = ["evaluate", "--fixed-label", "f_label.nii.gz", "--moved-label"]
CORRELATE = ["evaluate", "--fixed", "f.nii.gz", "--moved"]
TRE = ["evaluate", "--fixed-points", "f.csv", "--moving-points", "m.csv"]


def lists(text, words=BY):
    return put("l.csv", text), [*words, "--list", "l.csv"]


HALF, EMPTY = edited("m_label.nii.gz", lambda a: a / 2, "half.nii"), edited("f_mask.nii.gz", np.zeros_like, "t.nii")
AWAY = edited("f_label.nii.gz", np.array, "e.nii", np.uint8, shift=4)
OTHERS = {  # name -> what makes a file, words
    "apply, no transform": (nothing, [*MOVE, "no.h5"]),
    "apply, unreadable transform": (put("t.h5", "x"), [*MOVE, "t.h5"]),
    "apply, unreadable text": (put("t.tfm", "x"), [*MOVE, "t.tfm"]),
    "apply, empty text": (put("t.txt"), [*MOVE, "t.txt"]),
    "apply, image as transform": (nothing, [*MOVE, "m.nii.gz"]),
    "apply, kind of transform": (put("t.json", "x"), [*MOVE, "t.json"]),
    "apply, 2-D transform": (TWO_D, [*MOVE, "t.tfm"]),
    "apply, B-spline": (spline, [*MOVE, "s.h5"]),
    "apply, cut off": (cut_off, [*MOVE, "c.h5"]),
    "apply, folder": (directory("t.h5"), [*MOVE, "t.h5"]),
    "apply, singular": (SINGULAR, [*MOVE, "t.tfm"]),
    "apply, image RGB": (COLOUR, [*BY, "--input", "t.nii", *TO]),
    "apply, image 4-D": (FOUR_D, [*BY, "--input", "t.nii", *TO]),
    "apply, reference 2-D": (FLAT, [*MOVE, T[1], "--reference", "t.nii"]),
    "apply, spacing 0": (ZERO, [*MOVE, T[1], "--reference", "t.nii"]),
    "apply, no reference": (nothing, ["apply", *T, *IMAGE, *TO]),
    "apply, absent reference": (nothing, [*MOVE, T[1], "--reference", "no.nii"]),
    "apply, no input": (nothing, BY),
    "apply, no output": (nothing, [*BY, *IMAGE]),
    "apply, both": (put("l.csv", "x"), [*BY, *IMAGE, *TO, "--list", "l.csv"]),
    "apply, absent input": (nothing, [*BY, "--input", "no.nii", *TO]),
    "apply, counts": (nothing, [*BY, "--input", "m.nii.gz", "f.nii.gz", "moved.nii.gz", "--output", "a.nii", "b.nii"]),
    "apply, many into a file": (nothing, [*BY, "--input", "m.nii.gz", "m_label.nii.gz", "--output", "no/"]),
    "apply, folder missing": (nothing, [*BY, *IMAGE, "--output", "no/moved.nii.gz"]),
    "apply, output is a folder": (
        directory("o.nii"), [*BY, "--input", "m.nii.gz", "m_label.nii.gz", "--output", "a.nii", "o.nii"]
    ),
    "apply, twice the same": (nothing, [*BY, "--input", "m.nii.gz", "m_label.nii.gz", "--output", "a.nii", "a.nii"]),
    "apply, one bad of three": (
        put("bad.nii", "x"),
        [*BY, "--input", "m.nii.gz", "bad.nii", "m_label.nii.gz", "--output", "a.nii", "b.nii", "c.nii"],
    ),
    "apply, over an input": (nothing, [*BY, *IMAGE, "--output", "m.nii.gz"]),
    "apply, over the reference": (nothing, [*BY, *IMAGE, "--output", "./f.nii.gz"]),
    "apply, image as points": (nothing, [*BY, *IMAGE, "--output", "a.csv"]),
    "apply, points as image": (nothing, [*BY, "--input", "f.csv", "--output", "a.nii"]),
    "apply, output kind": (nothing, [*BY, *IMAGE, "--output", "a.png"]),
    "apply, no space": (nothing, [*BY, "--input", "f.csv", "--output", "a.csv"]),
    "apply, bad points": (put("p.csv", "1,2,3\n"), [*BY, "--input", "p.csv", "--output", "a.csv"]),
    "apply, points NaN": (NAN_POINTS, [*BY, *LPS, "--input", "p.csv", "--output", "a.csv"]),
    "apply, fractions": (HALF, [*BY, "--label", "--input", "half.nii", *TO]),
    "apply, label and linear": (nothing, [*BY, *LABEL, *TO, "--interpolation", "linear"]),
    "apply, fill": (nothing, [*BY, *LABEL, *TO, "--default-value", "300"]),
    "apply, type": (nothing, [*BY, *IMAGE, *TO, "--default-value", "-4", "--dtype", "uint8"]),
    "apply, unknown type": (nothing, [*BY, *IMAGE, *TO, "--dtype", "complex64"]),
    "apply, unknown space": (nothing, [*BY, *IMAGE, *TO, "--space", "RAI"]),
    "apply, bad number": (nothing, [*BY, *IMAGE, *TO, "--default-value", "nan"]),
    "apply, unknown option": (nothing, [*BY, *IMAGE, *TO, "--interp", "linear"]),
    "apply, list absent": (nothing, [*BY, "--list", "no.csv"]),
    "apply, list header": lists("a,b\n1,2\n"),
    "apply, list empty": lists("input,output\n"),
    "apply, list cells": lists("input,output\na\n"),
    "apply, list kind": lists("input,output,kind\nm.nii.gz,o.nii,mesh\n"),
    "apply, list kind of points": lists("input,output,kind\nf.csv,o.csv,label\n"),
    "apply, list reads it": lists("input,output\nm.nii.gz,a.nii\nm_label.nii.gz,m.nii.gz\n"),
    "jacobian, no transform": (nothing, [*JACOBIAN, "no.h5"]),
    "jacobian, points as transform": (nothing, [*JACOBIAN, "f.csv"]),
    "jacobian, image as transform": (nothing, [*JACOBIAN, "m_label.nii.gz"]),
    "jacobian, cut off": (cut_off, [*JACOBIAN, "c.h5"]),
    "jacobian, B-spline": (spline, [*JACOBIAN, "s.h5"]),
    "jacobian, 2-D": (TWO_D, [*JACOBIAN, "t.tfm"]),
    "jacobian, RGB": (COLOUR, [*JACOBIAN, T[1], "--reference", "t.nii"]),
    "jacobian, folder": (nothing, [*JACOBIAN, T[1], "--reference", "."]),
    "jacobian, slice": (small("t.nii", np.zeros((5, 6, 1))), [*JACOBIAN, T[1], "--reference", "t.nii"]),
    "jacobian, no reference": (nothing, [*JACOBIAN, T[1], "--reference", "no.nii"]),
    "jacobian, output kind": (nothing, [*JACOBIAN, T[1], "--output", "j.png"]),
    "jacobian, folder missing": (nothing, [*JACOBIAN, T[1], "--output", "no/j.nii"]),
    "jacobian, output is a folder": (directory("d.nii"), [*JACOBIAN, T[1], "--output", "d.nii"]),
    "jacobian, over the reference": (nothing, [*JACOBIAN, T[1], "--output", "f.nii.gz"]),
    "jacobian, unknown option": (nothing, [*JACOBIAN, T[1], "--logarithm"]),
    "jacobian, no output": (nothing, ["jacobian", *T, *R]),
    "evaluate, nothing": (nothing, ["evaluate"]),
    "evaluate, one label": (nothing, LABELS[:3]),
    "evaluate, one image": (nothing, ["evaluate", "--moved", "f.nii.gz"]),
    "evaluate, one points file": (nothing, TRE[:3]),
    "evaluate, reference alone": (nothing, ["evaluate", *R]),
    "evaluate, transform alone": (nothing, [*CORRELATE, "moved.nii.gz", *T]),
    "evaluate, mask alone": (nothing, [*LABELS, "moved_label.nii.gz", "--mask", "f_mask.nii.gz"]),
    "evaluate, labels alone": (nothing, [*CORRELATE, "moved.nii.gz", "--labels", "1"]),
    "evaluate, label not a number": (nothing, [*LABELS, "moved_label.nii.gz", "--labels", "a"]),
    "evaluate, unknown option": (nothing, [*LABELS, "moved_label.nii.gz", "--moving-label", "m_label.nii.gz"]),
    "evaluate, grids of labels": (nothing, [*LABELS, "m_label.nii.gz"]),
    "evaluate, place of labels": (AWAY, [*LABELS, "e.nii"]),
    "evaluate, grids of images": (nothing, [*CORRELATE, "m.nii.gz"]),
    "evaluate, place of images": (AWAY, [*CORRELATE, "e.nii"]),
    "evaluate, fractions": (edited("f_label.nii.gz", lambda a: a / 2, "half.nii"), [*LABELS, "half.nii"]),
    "evaluate, label RGB": (COLOUR, [*LABELS, "t.nii"]),
    "evaluate, label 4-D": (FOUR_D, [*LABELS, "t.nii"]),
    "evaluate, empty mask": (EMPTY, [*CORRELATE, "moved.nii.gz", "--mask", "t.nii"]),
    "evaluate, mask elsewhere": (small("t.nii", np.ones((5, 6, 7))), [*CORRELATE, "moved.nii.gz", "--mask", "t.nii"]),
    "evaluate, constant": (small("t.nii", np.ones((5, 6, 7))), ["evaluate", "--fixed", "t.nii", "--moved", "m.nii.gz"]),
    "evaluate, fewer points": (put("p.csv", "x,y,z\n1,2,3\n"), [*TRE[:4], "p.csv", *LPS]),
    "evaluate, order of points": (
        lambda folder: [put(f"{n}.csv", f"label,x,y,z\n{n},1,0,0\n{o},0,1,0\n")(folder) for n, o in ("ab", "ba")],
        ["evaluate", "--fixed-points", "a.csv", "--moving-points", "b.csv", *LPS],
    ),
    "evaluate, points NaN": (NAN_POINTS, [*TRE[:4], "p.csv", *LPS]),
    "evaluate, no points": (put("p.csv", "x,y,z\n"), [*TRE[:2], "p.csv", *TRE[3:], *LPS]),
    "evaluate, space": (nothing, TRE),
    "evaluate, transform kind": (nothing, [*TRE, *LPS, "--transform", "m_label.nii.gz"]),
    "evaluate, cut off": (cut_off, ["evaluate", "--transform", "c.h5", *R]),
    "evaluate, output kind": (nothing, [*LABELS, "moved_label.nii.gz", "--output", "m.txt"]),
    "evaluate, output folder": (nothing, [*LABELS, "moved_label.nii.gz", "--output", "no/m.json"]),
    "evaluate, output is a folder": (directory("d.json"), [*LABELS, "moved_label.nii.gz", "--output", "d.json"]),
    "no command": (nothing, []),
    "unknown command": (nothing, ["aply"]),
    "shortened option": (nothing, ["jacobian", "--trans", "t.h5", *R, *TO]),
    "points outside the field": (
        put("p.csv", "x,y,z\n900,900,900\n0,0,0\n"), ["apply", *T, *LPS, "--input", "p.csv", "--output", "o.csv"]
    ),
}  # fmt: skip


def listing(change):
    def spoil(folder):
        path = folder / "data" / "dataset.json"
        found = json.loads(path.read_bytes())
        change(found)
        path.write_text(json.dumps(found))

    return spoil


M, ML = "data/imagesTr/m.nii.gz", "data/labelsTr/m.nii.gz"
DATA = {  # name -> what spoils the data set, under configs/evaluate.json
    "empty": put(M),
    "no image": put(M, gzip.compress(b"no image")),
    "no gzip": put(M, b"no gzip"),
    "truncated": lambda folder: (folder / M).write_bytes((folder / M).read_bytes()[:-400]),
    "2-D": edited(M, lambda a: a[:, :, 0], M),
    "4-D": edited(M, lambda a: np.stack([a, a], -1), M),
    "one slice": edited(M, lambda a: a[:, :, :1], M),
    "constant": edited(M, lambda a: np.full_like(a, 7), M),
    "NaN": edited(M, value(np.nan), M),
    "infinity": edited(M, value(np.inf), M),
    "label's grid": edited(ML, lambda a: a[1:], ML),
    "label's fractions": edited(ML, value(0.5), ML),
    "label elsewhere": edited(ML, np.array, ML, shift=2),
    "absent image": lambda folder: (folder / M).unlink(),
    "unknown key": listing(lambda found: found.update(pears=[])),
    "no section": listing(lambda found: found.pop("registration_val")),
    "no fixed image": listing(lambda found: found["registration_val"][0].pop("fixed")),
    "no JSON": put("data/dataset.json", "{"),
    "no list": lambda folder: (folder / "data" / "dataset.json").unlink(),
}
OVERRIDES = [  # config, overrides
    ("evaluate", {"dataset_dir": "{data}/absent"}),
    ("evaluate", {"ckpt_path": "{data}/absent.pt"}),
    ("evaluate", {"ckpt_path": "{data}/dataset.json"}),
    ("evaluate", {"network_def#momentum_net#channels": [4, 4, 4, 4, 8]}),
    ("evaluate", {"output_dir": "{data}/dataset.json"}),
    ("evaluate", {"output_dir": "{data}/dataset.json/out"}),
    ("evaluate", {"pair_count": 0}),
    ("evaluate", {"section": "test"}),
    ("evaluate", {"network_def#affine_net#composition": "sideways"}),
    ("evaluate", {"network_def#vsvf#weights": [0.5, 0.6, 0.1, 0.1]}),
    ("evaluate", {"seed": -1}),
    ("evaluate", {"seed": "one"}),
    ("evaluate", {"threads": 0}),
    ("evaluate", {"sampling": {"_target_": "scripts.data.CentreOnGridd", "keys": ["image", "label"], "grid": "@grid"}}),
    ("train", {"label_weight": -1.0}),
    ("train", {"dataset_dir": "{data}/absent"}),
    ("train", {"train_pairs": 3}),
    ("train", {"epoch_pairs": 3}),
    ("train", {"pair_mode": "sideways"}),
    ("train", {"dataset_dir": None, "pair_mode": "sideways"}),
    ("train", {"dataset_dir": None, "train_pairs": None}),
    ("train", {"initial_weights": "{data}/absent.pt"}),
    ("train", {"output_dir": "{data}/dataset.json"}),
    ("train", {"seed": 1.5}),
    ("train", {"phases": []}),
    ("train", {"phases": [{"name": "a"}]}),
    ("train", {"phases": [{**PHASES[0], "pears": 1}]}),
    ("train", {"phases": [{**PHASES[0], "stage": "rigid"}]}),
    ("train", {"phases": [{**PHASES[0], "epochs": "2"}]}),
]


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def refusals(build, folder, cases):
    """Run bad input; cases: name -> folder, job, words that may name a file."""
    before = {name: tree(place) for name, (place, _, _) in cases.items()}
    results = build.worker([{"folder": str(place), **job} for place, job, _ in cases.values()])
    found = {}
    for (name, (place, _, words)), (status, _, error) in zip(cases.items(), results, strict=True):
        error = re.sub(r"0x[0-9a-f]+", "<ADDRESS>", error)
        lines = error.replace(str(build.bundle), "<BUNDLE>").replace(str(place), "<TMP>").splitlines() or [""]
        files = {Path(word).name for word in [*words, *before[name]] if re.search(r"\w\.[a-z]", word)}
        named = {file: re.search(rf"(?<![\w.]){re.escape(file)}(?!\w)", lines[-1]) for file in files}
        after = tree(place)
        found |= {
            f"{name}: status": status,
            f"{name}: line": lines[-1],
            f"{name}: names": sorted((f for f in files if named[f]), key=lambda f: (named[f].start(), f)),
            f"{name}: left": sorted(p for p in after if after[p] != before[name].get(p)),
            f"{name}: error lines count": sum(line.startswith("error: ") for line in lines),
            f"{name}: traceback count": int("Traceback" in error),
        }
    return found


def bad_words(cases, head=()):
    def run(build, folder):
        (folder / "base").mkdir()
        tools_folder(folder / "base")
        jobs = {}
        for i, (name, (make, words)) in enumerate(cases.items()):
            place = folder / f"case{i:03d}"
            shutil.copytree(folder / "base", place)
            make(place)
            jobs[name] = (place, {"words": [*head, *words]}, words)
        return refusals(build, folder, jobs)

    return run


def bad_configs(build, folder):
    jobs = {}
    cases = [(f"data, {name}", make, "evaluate", {}) for name, make in DATA.items()]
    cases += [(f"inference data, {name}", DATA[name], "inference", {}) for name in list(DATA)[13:]]
    cases += [(f"{name}, {json.dumps(change)}", nothing, name, change) for name, change in OVERRIDES]
    for i, (name, make, config, change) in enumerate(cases):
        place = folder / f"case{i:03d}"
        dataset_folder(place / "data")
        make(place)
        settings = {"threads": 1, "grid": [16, 16, 16], "dataset_dir": "{data}", "output_dir": str(place / "out")}
        if config == "train":
            settings |= TRAIN | LISTED
        text = json.dumps(settings | change).replace("{data}", str(place / "data"))
        (place / "override.json").write_text(text)
        jobs[name] = (place, {"config": config, "override": str(place / "override.json")}, re.findall(r"[\w.]+", text))
    return refusals(build, folder, jobs)


CASES |= {"errors/register": bad_words(REGISTER, ["register"]), "errors/others": bad_words(OTHERS)}
CASES |= {"errors/configs": bad_configs}

# ---------------------------------------------------------------------------------------------------------------------
# Cases: training, whole and interrupted, and evaluation of its weights.


def weights_of(out):
    import torch

    return torch.load(out / CHECKPOINT, weights_only=True, map_location="cpu")[NETWORK]


def interrupted(build, line, out):
    """Kill a training after its first checkpoint; then let it go on to its end."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(
        [sys.executable, *map(str, line)], cwd=build.bundle, env=build.environment, **quiet
    ) as process:
        while process.poll() is None and not (out / CHECKPOINT).exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError("the training ended before it could be killed")
    build.python(*line)


def losses_of(output):
    """What a training has printed of its losses after each epoch."""
    found = {}
    for epoch, text in re.findall(r"Epoch\[(\d+)\] Metrics -- (.*)", output):
        rows = re.findall(r"\b(loss\w*): (-?[\d.]+(?:e[-+]?\d+)?)", text)
        found |= {f"losses/{epoch}/{key}": float(number) for key, number in rows}
    return found


def training(name):
    def run(build, folder):
        overrides, network = TRAININGS[name]
        dataset_folder(folder / "data")
        data = [] if name == "phantom" else ["--dataset_dir", folder / "data"]
        whole, killed = folder / "whole", folder / "killed"
        printed = build.python(*build.config("train", overrides, folder, "--output_dir", whole, *data)).stdout
        found = {"files": sorted(p.name for p in whole.iterdir())} | losses_of(printed)
        first = weights_of(whole)
        found |= {f"weights/{key}": float(tensor.double().abs().mean()) for key, tensor in first.items()}
        if name == "phantom":
            interrupted(build, build.config("train", overrides, folder, "--output_dir", killed, *data), killed)
            second = weights_of(killed)
            found["interrupted and whole agree"] = first.keys() == second.keys() and all(
                first[key].equal(second[key]) for key in first
            )
        words = ["--ckpt_path", whole / "model.pt", "--output_dir", folder / "eval", *data]
        if name == "phantom":
            words += ["--phantom_count", "2"]
        build.python(*build.config("evaluate", {**EVALUATE, **network}, folder, *words))
        found["evaluation files"] = sorted(p.name for p in (folder / "eval").iterdir())
        return found | tables(folder / "eval")

    return run


CASES |= {f"training/{name}": training(name) for name in TRAININGS}
CASES |= {f"register/{p}/{w}": register(p, *words) for p in ("liver", "brain") for w, words in WAYS.items()}
CASES |= {"register/brain/general at 1 mm": register("brain whole")}

# ---------------------------------------------------------------------------------------------------------------------


def chosen(pattern):
    """Names of cases that can run here."""
    names = [name for name in CASES if pattern is None or fnmatch.fnmatch(name, f"*{pattern}*")]
    data = [name for name in names if any(f"/{real}/" in name for real in ("hippocampus", "liver", "brain"))]
    if data and "AVSM_DATA" not in os.environ:
        print(f"AVSM_DATA is not set: {len(data)} cases on real images are left out")
        names = [name for name in names if name not in data]
    return names


def load(path):
    with gzip.open(path, "rt") as stream:
        return json.load(stream)


def save(path, record):
    new = path.with_name(path.name + ".new")
    new.write_bytes(gzip.compress(json.dumps(record, sort_keys=True).encode(), mtime=0))
    new.replace(path)


def result(build, name):
    with tempfile.TemporaryDirectory() as folder:
        # As JSON knows it, so that a fresh result and one from a file are alike.
        return json.loads(json.dumps(CASES[name](build, Path(folder).resolve())))


def record(build, path, names):
    known = load(path) if path.exists() else {}
    for name in names:
        if name not in known:
            start = time.monotonic()
            try:
                known[name] = result(build, name)
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
                continue
            save(path, known)
            print(f"{name}: {len(known[name])} entries, {time.monotonic() - start:.0f} s", flush=True)
    print(f"{path}: {len(known)} cases")
    return int(any(name not in known for name in names))


def renamed(key):
    for old, new in RENAMED.items():
        key = key.replace(old, new)
    return key


def differences(name, old, new):
    """Lines on failures and lines on what is only told."""
    failed, told = [], []
    old = {renamed(key): value for key, value in old.items()}
    # A build that still has a measure's old name is as good.
    new = {key if renamed(key) in new else renamed(key): value for key, value in new.items()}
    for key in [*old, *(key for key in new if key not in old)]:
        if key not in old:
            told.append(f"{name}: {key}: new, {str(new[key])[:100]}")
        elif key not in new:
            quiet = next(rule[1] for rule in RULES if re.search(rule[0], key)) is None
            (told if quiet else failed).append(f"{name}: {key}: gone, was {str(old[key])[:100]}")
        elif key.endswith(": names"):
            if old[key] and old[key][0] not in new[key]:
                failed.append(f"{name}: {key}: the line does not name {old[key][0]}: {new[key[:-5] + 'line']}")
        elif (found := compare(key, old[key], new[key])) is not None:
            (failed if found[0] else told).append(f"{name}: {key}: {found[1]}")
    return failed, told


def check(build, path, names):
    known = load(path)
    failed, told, wrong = [], [], 0
    for name in names:
        if name not in known:
            told.append(f"{name}: not in the baseline")
            continue
        start = time.monotonic()
        try:
            lines, other = differences(name, known[name], result(build, name))
        except Exception as error:
            lines, other = [f"{name}: {type(error).__name__}: {error}"], []
        verdict = f"{len(lines)} differ" if lines else "as before"
        print(f"{name}: {verdict}, {time.monotonic() - start:.0f} s", flush=True)
        print("".join(f"  {line}\n" for line in lines), end="", flush=True)
        failed, told, wrong = failed + lines, told + other, wrong + bool(lines)
    if told:
        print("worded otherwise, or only told:", *told, sep="\n  ")
    print(f"{len(names)} cases, {wrong} of them differ, in {len(failed)} values; {len(told)} worded otherwise")
    return int(bool(failed))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "check", "list"))
    parser.add_argument("--bundle", type=Path, default=Path(__file__).parents[1] / "bundle")
    parser.add_argument("--baseline", "--output", type=Path, default=Path(__file__).with_suffix(".json.gz"))
    parser.add_argument("--only", metavar="PATTERN")
    options = parser.parse_args()
    names = chosen(options.only)
    if options.what == "list":
        print(*names, sep="\n")
        return 0
    return (record if options.what == "record" else check)(Build(options.bundle), options.baseline, names)


if __name__ == "__main__":
    sys.exit(main())
