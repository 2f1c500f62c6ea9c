"""Planes are chosen where the labels are and laid out as radiologists see them."""

from itertools import permutations, product

import nibabel.orientations as orient
import numpy as np
import pytest

from scripts.report import choose_planes

RAS = np.random.default_rng(0).uniform(size=(4, 5, 6))
SPACING = (1.0, 2.0, 3.0)
CODES = ["".join(c) for axes in permutations(("RL", "AP", "SI")) for c in product(*axes)]


def reorient(volume, spacing, code):
    """The same volume stored along other axes, by nibabel."""
    turn = orient.ornt_transform(orient.axcodes2ornt("RAS"), orient.axcodes2ornt(tuple(code)))
    order = np.argsort(turn[:, 0]).astype(int)
    return orient.apply_orientation(volume, turn), tuple(np.asarray(spacing)[order])


def test_layout_of_ras_by_hand():
    axial, coronal, sagittal = choose_planes(RAS.shape, [], SPACING, "RAS")
    assert (axial.name, coronal.name, sagittal.name) == ("axial", "coronal", "sagittal")
    assert (axial.index, coronal.index, sagittal.index) == (3, 2, 2)
    # First row is the top, first column the left of the page; the last voxel of RAS is right, front, head.
    np.testing.assert_array_equal(axial.cut(RAS), RAS[::-1, ::-1, 3].T)  # front at the top, right at the left
    np.testing.assert_array_equal(coronal.cut(RAS), RAS[::-1, 2, ::-1].T)  # head at the top, right at the left
    np.testing.assert_array_equal(sagittal.cut(RAS), RAS[2, ::-1, ::-1].T)  # head at the top, front at the left
    assert [p.letters for p in (axial, coronal, sagittal)] == [tuple("ALPR"), tuple("SLIR"), tuple("SPIA")]
    assert [p.size for p in (axial, coronal, sagittal)] == [(10, 4), (18, 4), (18, 10)]


@pytest.mark.parametrize("code", CODES)
def test_storage_order_does_not_change_the_page(code):
    labels = (RAS > 0.8).astype(int)
    volume, spacing = reorient(RAS, SPACING, code)
    stored_labels, _ = reorient(labels, SPACING, code)
    expected = choose_planes(RAS.shape, [labels], SPACING, "RAS")
    for plane, truth in zip(choose_planes(volume.shape, [stored_labels], spacing, code), expected, strict=True):
        assert (plane.name, plane.letters, plane.size) == (truth.name, truth.letters, truth.size)
        np.testing.assert_array_equal(plane.cut(volume), truth.cut(RAS))


def block(*starts):
    label = np.zeros((20, 20, 20), dtype=np.uint8)
    for value, (d, h, w) in enumerate(starts, start=1):
        label[d : d + 3, h : h + 3, w : w + 3] = value
    return label


@pytest.mark.parametrize(
    ("labels", "centre"),
    [
        ([], (10, 10, 10)),
        ([block()], (10, 10, 10)),  # nothing in it
        ([block((2, 4, 15))], (3, 5, 16)),
        ([block((2, 4, 15), (6, 4, 11))], (5, 5, 14)),  # every value counts alike
        ([block((2, 4, 15)), block((4, 8, 13))], (4, 7, 15)),
        ([block(), block((0, 0, 17))], (1, 1, 18)),
    ],
)
def test_planes_go_through_the_labels(labels, centre):
    assert tuple(p.index for p in choose_planes((20, 20, 20), labels, (1, 1, 1), "SAR")) == centre
