"""A pair of objects in memory: read as files are, with labels and masks, and called by their roles in messages."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

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
