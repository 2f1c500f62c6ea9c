"""The search for the pose finds turns and shifts that headers hide, whatever the contrast."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from scripts.errors import InputError
from scripts.formats import Image
from scripts.registration import Pair, Registrar
from scripts.registration.grids import foreground_box, lay_grids
from scripts.registration.intensities import normalise
from scripts.registration.pose import choose_pose, coarse, rival
from scripts.registration.sampling import SamplePaird
from scripts.spatial import Frame

SHAPE, SPACING = (44, 52, 40), (2.0, 1.5, 2.5)


def head(seed=0):
    """A lopsided body with blobs, and background around it, ``(D, H, W)`` in [0, 1]."""
    random = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(*(np.linspace(-1.3, 1.3, n) for n in SHAPE), indexing="ij"))
    body = (at[0] / 0.8) ** 2 + (at[1] / 1.1) ** 2 + (at[2] / 0.7) ** 2 + 0.35 * at[0] * at[1] + 0.3 * at[2] < 1
    blobs = gaussian_filter(random.normal(size=SHAPE), 3)
    blobs = (blobs - blobs.min()) / np.ptp(blobs)
    return (gaussian_filter(body.astype(float), 0.7) * (0.3 + 0.7 * blobs)).astype(np.float32)


def image(array=None, matrix=None):
    affine = np.diag((*SPACING, 1.0))
    affine[:3, 3] = (-40, 10, 25)
    affine = affine if matrix is None else matrix @ affine
    array = head() if array is None else array
    return Image(array, Frame(array.shape, affine), "image.nii.gz")


def turn(degrees, axis, shift=(0, 0, 0), about=None):
    """A rigid motion about a point, ``(4, 4)``."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(degrees) * np.array(axis) / np.linalg.norm(axis)).as_matrix()
    about = image().frame.centre if about is None else about
    matrix[:3, 3] = about - matrix[:3, :3] @ about + shift
    return matrix


def found(fixed, moving, **options):
    boxes = [foreground_box(one.array) for one in (fixed, moving)]
    volume = max(float(np.prod((box[1] - box[0]) * SPACING)) for box in boxes)
    contents = (
        coarse(normalise(one.array, box), one.frame, box, volume)
        for one, box in zip((fixed, moving), boxes, strict=True)
    )
    return choose_pose(*contents, **options)


def off(matrix, truth):
    """Degrees and mm (at the centre) between two motions."""
    angle = np.degrees((Rotation.from_matrix(matrix[:3, :3].T @ truth[:3, :3])).magnitude())
    centre = image().frame.centre
    return angle, np.linalg.norm((matrix - truth)[:3] @ np.append(centre, 1))


TURNS = [
    (0, (1, 0, 0)), (15, (0, 0, 1)), (60, (0, 1, 0)), (90, (1, 0, 0)), (135, (1, 1, 1)), (180, (0, 0, 1)),
    (180, (1, -1, 0)),
]  # fmt: skip


@pytest.mark.parametrize("degrees, axis", TURNS)
@pytest.mark.parametrize("contrast", [lambda v: v, lambda v: np.where(v > 0.05, 1.1 - v, 0)], ids=["same", "inverted"])
def test_a_header_that_is_turned_and_shifted_is_undone(degrees, axis, contrast):
    truth = turn(degrees, axis, shift=(70, -50, 30))
    moving = image(contrast(head()).astype(np.float32), truth)
    pose = found(image(), moving)
    if degrees == 0:
        assert pose.matrix is None and pose.facts["turned_by"] == 0  # centres on each other, and nothing turned
    else:
        angle, shift = off(pose.matrix, truth)
        assert angle < 6 and shift < 5
    angle, shift = off(found(image(), moving, always=True).matrix, truth)
    assert angle < 6 and shift < 5


@pytest.mark.parametrize("degrees, axis", [(50, (0, 0, 1)), (110, (1, 2, -1))])
def test_a_body_that_lies_turned_in_its_image_is_found(degrees, axis):
    truth = turn(degrees, axis)
    big = Frame((80, 80, 80), np.array([[2, 0, 0, -80], [0, 2, 0, -30], [0, 0, 2, -5], [0, 0, 0, 1.0]]))
    centre = big.centre
    truth[:3, 3] = centre - truth[:3, :3] @ image().frame.centre
    points = big.voxel_to_world(np.stack(np.indices(big.shape), axis=-1)) @ np.linalg.inv(truth)[:3, :3].T
    voxels = image().frame.world_to_voxel(points + np.linalg.inv(truth)[:3, 3])
    moving = Image(map_coordinates(head(), np.moveaxis(voxels, -1, 0), order=1), big, "turned.nii.gz")
    angle, shift = off(found(image(), moving).matrix, truth)
    assert angle < 10 and shift < 6


def test_nothing_is_turned_without_a_reason():
    """A ball looks the same from everywhere: the header's orientation stays."""
    at = np.stack(
        np.meshgrid(*((np.arange(n) - n / 2) * s for n, s in zip(SHAPE, SPACING, strict=True)), indexing="ij")
    )
    ball = gaussian_filter((np.linalg.norm(at, axis=0) < 28).astype(np.float32), 1)
    assert found(image(ball), image(ball)).matrix is None


@pytest.mark.parametrize("axis, sides", [(0, "left and right"), (1, "front and back"), (2, "top and bottom")])
@pytest.mark.parametrize("contrast", [lambda v: v, lambda v: np.where(v > 0.05, 1.1 - v, 0)], ids=["same", "inverted"])
def test_a_header_that_has_lost_a_flip_is_found_out(axis, sides, contrast):
    """The array runs backwards and its header does not say so: the content is its own mirror image in the world."""
    moving = image(np.flip(contrast(head()).astype(np.float32), axis).copy())
    pose = found(image(), moving)
    signs = np.ones(3)
    signs[axis] = -1
    np.testing.assert_allclose(pose.matrix[:3, :3], np.diag(signs), atol=1e-6)
    assert pose.facts["mirrored"] == sides


def test_a_body_with_like_sides_is_not_mirrored():
    """Either hand is as likely: what the header says stays, whichever side the noise is on."""
    even = head() + head()[::-1]
    noise = np.random.default_rng(3).normal(scale=0.02, size=even.shape).astype(np.float32)
    for sign in (1, -1):
        assert found(image(even), image(even + sign * noise * (even > 0.05))).matrix is None


def test_upside_down_is_believed_only_where_it_is_plain():
    """Of a body that is nearly the same upside down; the other image's small difference speaks for the wrong way."""
    over = head()[:, ::-1, ::-1]
    even, odd = head() + over, 0.15 * (head() - over)
    assert found(image(even + odd), image(even - odd)).matrix is None
    assert found(image(), image(over.copy())).facts["turned_by"] == pytest.approx(180, abs=6)


def test_a_rival_is_sought_only_where_both_images_are():
    """Grids along different axes end in padding, which looks alike in any orientation."""
    truth = turn(35, (1, 1, 0))
    sampling = SamplePaird(None, 16_000, "geometry", "common", "RAS", None, 0.1, 99.9)
    full = 0.4 + 0.6 * gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 3) / 0.1
    full = image(np.clip(full, 0.05, 1).astype(np.float32))
    sampled = sampling({"pair": Pair(fixed=full, moving=replace(full, frame=image(matrix=truth).frame))})["sampled"]
    right, wrong = (rival(sampled, one) for one in (truth, truth @ turn(120, (0, 0, 1))))
    assert sampled.view.mean() < 0.8
    assert right < 0.5 and wrong > 2
    assert rival(replace(sampled, mask=None, view=None), truth) > right + 0.1


def test_an_image_and_itself_need_no_warning():
    result = Registrar(device="cpu", grid_voxels=16_000)(Pair(fixed=image(), moving=image()))
    assert result.warnings == [] and str(result.verdict) == "PASS"


@pytest.mark.parametrize("seed", [5, 6, 7])
def test_another_inside_in_the_same_outline_is_not_mirrored(seed):
    assert found(image(), image(head(seed))).facts["mirrored"] is None


def test_registration_of_a_mirror_image_says_so_and_has_no_folds():
    moving = image(np.flip(head(), 0).copy())
    result = Registrar(device="cpu", grid_voxels=16_000)(Pair(fixed=image(), moving=moving))
    assert result.metrics["folds"] == 0 and result.metrics["jacobian"]["min"] > 0.5
    assert any("mirrored (left and right)" in note for note in result.warnings)
    assert result.metrics["similarity"]["ncc"]["final"] > 0.97
    there = result.transform.points(image().frame.corners)
    span = (
        image().frame.voxel_to_world(np.array([SHAPE[0] - 1, 0, 0]))[0] + image().frame.voxel_to_world(np.zeros(3))[0]
    )
    np.testing.assert_allclose(there, image().frame.corners * (-1, 1, 1) + (span, 0, 0), atol=1.5)


def test_grids_follow_the_pose():
    pose = found(image(), image(matrix=turn(75, (0, 1, 1), (10, 20, 30))))
    moving = image(matrix=turn(75, (0, 1, 1), (10, 20, 30)))
    grids = lay_grids(image(), moving, grid_voxels=20_000, pose=pose)
    np.testing.assert_allclose(grids.initial.linear, pose.matrix, atol=1e-8)
    inside = np.abs(grids.moving.world_to_normalised(moving.frame.voxel_to_world(foreground_box(moving.array))))
    assert inside.max() < 1.3 and grids.method == "search"


def test_registration_of_a_turned_image_ends_where_that_of_the_plain_one_does():
    truth = turn(120, (1, 0, 1), (40, 0, 0))
    register = Registrar(preset="affine-opt", device="cpu", grid_voxels=16_000)
    result = register(Pair(fixed=image(), moving=image(matrix=truth)))
    corners = image().frame.corners
    moved = result.transform.points(corners)
    np.testing.assert_allclose(moved, corners @ truth[:3, :3].T + truth[:3, 3], atol=1.0)
    assert any("turned by" in note for note in result.warnings)
    assert result.metrics["initialisation"]["turned_by"] == pytest.approx(120, abs=6)


def test_a_mask_limits_what_is_compared():
    """Outside of the mask the fixed image holds another body, the same way up as the header says."""
    truth = turn(90, (1, 0, 0))
    moving = image(matrix=truth)
    mask = replace(image(), array=head() > 0.05)
    angle, _ = off(found(image(), moving, mask=mask).matrix, truth)
    assert angle < 6


def test_search_is_refused_where_each_image_has_its_own_box():
    sampling = SamplePaird([16, 16, 16], 4096, "search", "own", "RAS", None, 0.1, 99.9)
    with pytest.raises(InputError, match="extent"):
        sampling({"pair": Pair(fixed=image(), moving=image())})
