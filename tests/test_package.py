"""The package as users install it: a wheel, beside a `scripts` package of their own, equal to the command."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from register_cases import GRID, write_pair

ROOT = Path(__file__).parents[1]
CODE = """
import json, sys
import itk, nibabel, numpy as np, SimpleITK as sitk, torch
from monai.data import MetaTensor
import scripts
assert scripts.MINE == 1
import avsm
fixed, moving, out = sys.argv[1:4]
grid = [48, 64, 48]
F, M = nibabel.load(fixed), nibabel.load(moving)
kinds = {
    "path": (fixed, moving),
    "nibabel": (F, M),
    "array": ((F.get_fdata(dtype=np.float32), F.affine), (M.get_fdata(dtype=np.float32), M.affine)),
    "SimpleITK": (sitk.ReadImage(fixed), sitk.ReadImage(moving)),
    "itk": (itk.imread(fixed), itk.imread(moving)),
    "MetaTensor": tuple(
        MetaTensor(torch.tensor(x.get_fdata(dtype=np.float32))[None], affine=torch.tensor(x.affine)) for x in (F, M)
    ),
}
back = {
    "path": lambda m: m.get_fdata(),
    "nibabel": lambda m: m.get_fdata(),
    "array": lambda m: m[0],
    "SimpleITK": lambda m: sitk.GetArrayFromImage(m).transpose(2, 1, 0),
    "itk": lambda m: itk.array_from_image(m).transpose(2, 1, 0),
    "MetaTensor": lambda m: m.numpy()[0],
}
for kind, pair in kinds.items():
    result = avsm.register(*pair, grid=grid, threads=1, preset="fast", affine_steps=2, vsvf_steps=1)
    assert kind == "path" or type(result.moved) is type(pair[1]), type(result.moved)
    np.save(f"{out}/{kind}.npy", back[kind](result.moved))
centre = nibabel.affines.apply_affine(F.affine, np.array(F.shape) / 2)
points = np.random.default_rng(0).uniform(-20, 20, (9, 3)) + centre
lps = points * (-1, -1, 1)
there = result.transform.points(points)
transform = result.transform.to_sitk()
itks = [np.array(transform.TransformPoint(p)) * (-1, -1, 1) for p in lps]
np.save(f"{out}/points.npy", np.stack([points, there, itks]))
twice = result.transform.then(result.inverse).points(points)
warped = avsm.apply(result.transform, moving, fixed, default_value=float(M.get_fdata().min())).get_fdata()
image, measures = avsm.jacobian(result.transform, fixed)
folder = result.save(out + "/saved")
loaded = avsm.load_transform(folder / "transform.h5")
scores = avsm.evaluate(fixed=fixed, moved=str(folder / "moved.nii.gz"), transform=loaded, reference=fixed)
print(json.dumps({
    "module": avsm.__file__, "version": avsm.__version__, "warnings": result.warnings, "folds": measures["folds"],
    "round": float(np.abs(twice - points).max()), "loaded": float(np.abs(loaded.points(points) - there).max()),
    "warped": float(np.abs(warped - back["MetaTensor"](result.moved)).max()), "ncc": scores["ncc"],
    "metrics": result.metrics["similarity"]["ncc"]["final"], "jacobian": list(image.shape),
}))
"""


def python(*words, **options):
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=True, **options)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the unpacked wheel, and one with a package `scripts` of somebody else's."""
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: setuptools would leave its build folder in the tree, and take up what an earlier one has left there.
    source = folder / "source"
    shutil.copytree(ROOT / "bundle", source / "bundle", ignore=shutil.ignore_patterns("docs", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    python("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("avsm-*.whl")
    assert wheel.stat().st_size < 45e6
    zipfile.ZipFile(wheel).extractall(folder / "site")
    (folder / "work" / "scripts").mkdir(parents=True)
    (folder / "work" / "scripts" / "__init__.py").write_text("MINE = 1\n")
    return folder


def test_three_lines_of_python_equal_the_command(installed, tmp_path):
    files = write_pair(tmp_path, "other sizes, spacings and axes")
    environment = {"PYTHONPATH": str(installed / "site"), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    work = {"cwd": installed / "work", "env": environment}
    pair = ("--fixed", files["fixed"], "--moving", files["moving"], "--output", tmp_path / "command")
    options = ("--threads", 1, "--preset", "fast", "--affine-steps", 2, "--vsvf-steps", 1, "--no-report")
    python("-m", "avsm.cli", "register", *pair, *GRID, *options, **work)
    found = json.loads(python("-c", CODE, files["fixed"], files["moving"], tmp_path, **work).stdout.splitlines()[-1])
    assert Path(found["module"]).is_relative_to(installed / "site")
    expected = nib.load(tmp_path / "command" / "moved.nii.gz").get_fdata()
    for kind in ("path", "nibabel", "array", "SimpleITK", "itk", "MetaTensor"):
        # ITK reads the geometry from single precision numbers of the header.
        np.testing.assert_allclose(np.load(tmp_path / f"{kind}.npy"), expected, atol=0.5, err_msg=kind)
    _, ours, itks = np.load(tmp_path / "points.npy")
    np.testing.assert_allclose(ours, itks, atol=1e-6)
    assert found["folds"] == 0 and found["round"] < 0.1 and found["loaded"] < 1e-6
    assert found["warped"] < 0.5 and found["ncc"] > 0.5
    saved, command = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("saved", "command"))
    assert saved["similarity"]["ncc"]["final"] == pytest.approx(command["similarity"]["ncc"]["final"], abs=1e-4)
    files = {path.name for path in (tmp_path / "command").iterdir()} - {"pairs.csv", "summary.json"}
    assert files <= {path.name for path in (tmp_path / "saved").iterdir()}
