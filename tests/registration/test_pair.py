"""A pair of objects in memory: read as files are, with labels and masks, and called by their roles in messages."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter

from image_files import nifti
from scripts.errors import InputError
from scripts.registration import Pair

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
IMAGE = np.arange(6 * 7 * 8, dtype=np.float32).reshape(6, 7, 8)
LABEL = (IMAGE > 100).astype(np.uint8)
KINDS = {
    "array": lambda array: (array, AFFINE),
    "MetaTensor": lambda array: MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(AFFINE)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_and_masks_of_objects(kind):
    make = KINDS[kind]
    roles = {"fixed": IMAGE, "moving": IMAGE[::-1].copy(), "fixed_label": LABEL, "moving_mask": LABEL}
    pair = Pair.read({**{role: make(array) for role, array in roles.items()}, "moving_label": None, "fixed_mask": ""})
    assert list(pair.images) == ["fixed", "moving", "fixed_label", "moving_mask"]
    np.testing.assert_array_equal(pair.fixed_label.array, LABEL)
    assert pair.moving_mask.array.dtype == bool and pair.fixed.frame.spacing.tolist() == [2.0, 2.0, 3.0]


@pytest.mark.parametrize("role", ["fixed", "moving_label"])
def test_messages_call_objects_by_their_roles(role):
    objects = {"fixed": (IMAGE, AFFINE), "moving": (IMAGE, AFFINE), "moving_label": (LABEL, AFFINE)}
    objects[role] = (np.full((6, 7, 8), 0.5, np.float32), AFFINE)
    with pytest.raises(InputError, match=rf"^(\S*/)?{role}: "):
        Pair.read(objects)


BODY = gaussian_filter(np.random.default_rng(3).normal(size=(20, 22, 18)), 2)
NOISE = np.random.default_rng(4).normal(size=(8, 8, 8))
OTHER = gaussian_filter(np.random.default_rng(5).normal(size=(20, 22, 18)), 2)
HALVES = ((BODY > 0).astype(np.int16), AFFINE)
MIRROR = "look like mirror images of each other"
DOUBTS = {  # fixed, moving, words of the notes
    "sound": ((BODY, AFFINE), (OTHER, AFFINE), []),
    "the same image": ((BODY, AFFINE), (BODY, AFFINE), []),
    "mirrored array": ((BODY, AFFINE), (BODY[::-1], AFFINE), [f"{MIRROR} (left and right)"]),
    "mirrored upside down": ((BODY, AFFINE), (BODY[..., ::-1] + 0.05 * OTHER, AFFINE), [f"{MIRROR} (top and bottom)"]),
    # The header says that the array runs the other way: the world is the same.
    "flipped grid": ((BODY, np.eye(4)), (BODY[::-1], np.diag([-1.0, 1, 1, 1])), []),
    "lost flip": ((BODY, np.eye(4)), (BODY, np.diag([-1.0, 1, 1, 1])), [f"{MIRROR} (left"]),
    "noise": ((NOISE, AFFINE), (NOISE[..., ::-1] ** 3, AFFINE),
        ["fixed: looks like noise", "moving: looks like noise"]),
    "mask": ((BODY, AFFINE), HALVES, ["moving: holds only the values 0 and 1, as a mask"]),
}  # fmt: skip


@pytest.mark.parametrize(("fixed", "moving", "words"), DOUBTS.values(), ids=DOUBTS)
def test_images_that_would_register_plausibly_and_wrongly(fixed, moving, words):
    notes = Pair.read({"fixed": fixed, "moving": moving}).notes
    assert len(notes) == len(words) and all(said in note for said, note in zip(words, notes, strict=True)), notes


def test_a_note_of_a_file_that_is_both_images_is_told_once(tmp_path):
    path = tmp_path / "image.nii"
    path.write_bytes(nifti(affine=AFFINE, sform_code=0, qform_code=0))
    notes = [note for note in Pair.read({"fixed": path, "moving": path}).notes if "neither sform nor qform" in note]
    assert len(notes) == 1 and notes[0].startswith("fixed, moving: neither")
