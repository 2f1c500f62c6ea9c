"""Files and options of every bad kind, and what a command that refuses them must keep to."""

import nibabel as nib
import numpy as np
import torch

import scripts.cli.register as command
import tiny_bundle as tiny
from cli_cases import refused
from image_files import nifti, series, voxels
from scripts.formats.volumes import save_volume
from world_cases import frame, noise

FIXED = frame((10, 12, 9), (8, -5, 14), (2, 1.5, 3), (-10, 5, 20))
MOVING = frame((11, 9, 12), (0, 0, 0), (1.5, 2, 2), (5, -5, 0))
SMALL = {**tiny.NETWORK, "grid": tiny.GRID, "affine_steps": 2, "threads": 1, "inverse_tolerance": 1e3}
PAIR = ("--fixed", "f.nii.gz", "--moving", "m.nii.gz")
OUT = ("--output", "out")


def shrink(monkeypatch):
    """Give ``avsm register`` a network that takes no time; what is not said on the command line is small as well."""
    asked = command.config_values
    monkeypatch.setattr(command, "config_values", lambda settings: {**SMALL, **asked(settings)})


def write_images(folder):
    """A pair with label maps and a mask, stored as integers."""
    for name, where, seed in (("f", FIXED, 1), ("m", MOVING, 2)):
        image = noise(where.shape, seed)
        save_volume(1000 * image, where.affine, folder / f"{name}.nii.gz", np.int16)
        save_volume(3 * image, where.affine, folder / f"{name}_label.nii.gz", np.uint8)
    save_volume(np.ones(FIXED.shape), FIXED.affine, folder / "f_mask.nii.gz", np.uint8)


def tree(folder):
    """Everything below a folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refusal(words, folder, capfd, caplog, status=1):
    """The one line of a command that must fail and leave the folder as it is."""
    before = tree(folder)
    capfd.readouterr()
    line = refused(words, capfd, status)
    assert tree(folder) == before
    assert not caplog.records
    return line


def put(name, content):
    def write(folder):
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def edited(source, change, name, where=None, dtype=np.float32):
    """Write what ``change`` makes of a file's array (D, H, W)."""

    def write(folder):
        image = nib.load(folder / source)
        affine = image.affine if where is None else where
        array = np.asarray(change(np.asarray(image.dataobj).astype(np.float64)), dtype)
        nib.save(nib.Nifti1Image(array, affine, dtype=array.dtype), folder / name)

    return write


def value(number):
    def change(array):
        array[3, 4, 5] = number
        return array

    return change


def moved_by(source, millimetres, name):
    affine = MOVING.affine.copy()
    affine[0, 3] += millimetres
    return edited(source, lambda array: array, name, affine)


def two_series(folder):
    series(folder / "dicom")
    series(folder / "dicom", uid="9.9", name="t", at=range(20, 28))


def another_network(folder):
    state = tiny.tiny_network().state_dict()
    torch.save({name: tensor for name, tensor in state.items() if "affine_net" not in name}, folder / "other.pt")


def earlier(name):
    """An output folder that holds one of the pair's files, under a name that a result has."""

    def write(folder):
        (folder / "out").mkdir()
        (folder / "out" / name).write_bytes((folder / "m.nii.gz").read_bytes())

    return write


def own_table(folder):
    (folder / "out").mkdir()
    (folder / "out" / "pairs.csv").write_text("fixed,moving\n../f.nii.gz,../m.nii.gz\n")


RGB = np.zeros((6, 7, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])
SHEAR = np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
NO_SPACING = nifti(sform_code=0, qform_code=1, pixdim=[1, 0, 2, 3])
FOUR_D = nifti(voxels(shape=(10, 12, 9, 2)))
