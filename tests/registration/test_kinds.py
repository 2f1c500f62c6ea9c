"""A rigid transform is rigid, a similarity has one scale: in what is found, and in files as SimpleITK reads them."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from motion_cases import FIXED, head, motion
from scripts.api import register
from scripts.errors import InputError
from scripts.formats import Image, write_transform
from scripts.registration import Pair, Registrar
from scripts.settings import config_values
from scripts.spatial import Frame, WorldTransform, apply_matrix, is_of_kind, nearest_of_kind
from scripts.transform import Transform

CLASSES = {"rigid": "Euler3DTransform", "similarity": "Similarity3DTransform", "affine": "AffineTransform"}


def moved_by(matrix):
    """The head after a motion, on a grid of another spacing, box and direction."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("zy", (4, -3), degrees=True).as_matrix() * (1.7, 2.3, 2.6)
    shape = np.array((56, 50, 40))
    affine[:3, 3] = apply_matrix(matrix, FIXED.centre) + np.array((3, -2, 4)) - affine[:3, :3] @ ((shape - 1) / 2)
    frame = Frame(tuple(shape), affine)
    voxels = np.stack(np.indices(frame.shape), axis=-1).reshape(-1, 3)
    where = FIXED.world_to_voxel(apply_matrix(np.linalg.inv(matrix), frame.voxel_to_world(voxels)))
    return map_coordinates(head(), where.T, order=3).reshape(frame.shape).astype(np.float32), frame.affine


def images(matrix):
    return (head(), FIXED.affine), moved_by(matrix)


def off(linear, truth):
    """Mean distance in mm over the head."""
    points = FIXED.voxel_to_world(np.argwhere(head() > 0.1))
    return np.linalg.norm(apply_matrix(linear, points) - apply_matrix(truth, points), axis=1).mean()


def in_itk(path, kind):
    """The matrix of a file's linear transform, RAS, by SimpleITK, which must call it by the class of its kind."""
    transform = sitk.ReadTransform(str(path))
    if transform.GetName() == "CompositeTransform":
        transform = sitk.CompositeTransform(transform)
        assert transform.GetNumberOfTransforms() == 1
        transform = transform.GetNthTransform(0)
    assert transform.GetName() == CLASSES[kind]
    flip = np.diag((-1.0, -1.0, 1.0, 1.0))
    matrix = np.eye(4)
    matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    for axis, point in enumerate(np.eye(3)):
        matrix[:3, axis] = transform.TransformPoint(point.tolist()) - matrix[:3, 3]
    return flip @ matrix @ flip


def check_kind(matrix, kind):
    squares = matrix[:3, :3].T @ matrix[:3, :3]
    scale = np.cbrt(np.linalg.det(matrix[:3, :3])) if kind == "similarity" else 1.0
    assert scale > 0
    np.testing.assert_allclose(squares / scale**2, np.eye(3), atol=1e-9)


T2 = ([0, 0.05, 0.25, 0.45, 0.6, 0.8, 1], [0, 0.9, 1, 0.75, 0.6, 0.35, 0.3])
CONTRASTS = {
    "same": lambda array: array,
    "inverted": lambda array: np.where(array > 0.05, 1.1 - array, 0).astype(np.float32),
    "like T2": lambda array: np.where(array > 0.03, np.interp(array, *T2), 0).astype(np.float32),
}

# Kind, preset, options, and how close (mm) at voxels of 2 mm.
CASES = {
    "rigid": ("rigid", "default", {}, 0.15),
    "rigid, coarse": ("rigid", "affine-opt", {}, 0.15),
    "rigid, network": ("rigid", "fast", {}, 0.15),
    "rigid, own boxes": ("rigid", "affine-opt", {"extent": "own"}, 0.15),
    "rigid, from headers": ("rigid", "best", {"initialisation": "header"}, 0.15),
    "similarity": ("similarity", "default", {}, 0.15),
    "similarity, own boxes": ("similarity", "affine-opt", {"extent": "own"}, 0.15),
    "affine": ("affine", "default", {}, 0.3),
}


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("degrees", [(6, -9, 11), (15, 0, 0)])
@pytest.mark.parametrize("kind", CLASSES)
def test_a_rigid_motion_is_found_by_every_kind_in_every_contrast(kind, degrees, contrast):
    truth = motion(degrees)
    fixed, (array, affine) = images(truth)
    result = register(fixed, (CONTRASTS[contrast](array), affine), transform=kind, device="cpu", threads=1)
    assert off(result.transform.parts[0].linear, truth) < 0.3
    assert result.metrics["optimisation"]["similarity"] == ("lncc" if contrast == "same" else "mind")


@pytest.mark.parametrize(("kind", "preset", "options", "most"), CASES.values(), ids=CASES)
def test_known_motions(kind, preset, options, most, tmp_path):
    truth = motion(scale=1.08 if kind == "similarity" else 1.0)
    result = register(*images(truth), transform=kind, preset=preset, device="cpu", threads=1, **options)
    assert off(result.transform.parts[0].linear, truth) < most
    assert result.metrics["affine"]["kind"] == kind and len(result.transform.parts) == 1
    assert repr(result) == f"Result(moving to fixed: {result.verdict}, Transform(1 part))"
    result.save(tmp_path, report=False)
    for file, expected in (
        ("affine.tfm", result.transform),
        ("transform.h5", result.transform),
        ("inverse_transform.h5", result.inverse),
    ):
        found = in_itk(tmp_path / file, kind)
        np.testing.assert_allclose(found, expected.parts[0].linear, atol=1e-6)
        if kind != "affine":
            check_kind(found, kind)


def test_a_mirror_image_is_not_rigid():
    """What is most alike mirrored stays as it is in rigid and similarity, and the reason for the pose says no sides."""
    array, affine = moved_by(motion((0, 0, 0)))
    for kind in ("rigid", "similarity"):
        result = register((head(), FIXED.affine), (array[::-1].copy(), affine), transform=kind, device="cpu")
        assert np.linalg.det(result.transform.parts[0].linear[:3, :3]) > 0
        assert result.metrics["initialisation"]["mirrored"] is None


SHEAR = np.array([[1.0, 0.06, 0, 2], [0, 1.05, 0.02, -1], [0, 0, 0.97, 3], [0, 0, 0, 1]])


@pytest.mark.parametrize(("start", "kind"), [(motion((4, 0, -3)), "rigid"), (SHEAR, "affine")])
def test_an_initial_transform_is_kept_whole(start, kind, tmp_path):
    """The motion that is found goes before it, as in ANTs; together they are rigid only where both are."""
    truth = motion((3, -4, 5))
    initial = Transform([WorldTransform(start)])
    moving = moved_by(start @ truth)
    options = {"transform": "rigid", "initial_transform": initial, "preset": "affine-opt", "device": "cpu"}
    result = register((head(), FIXED.affine), moving, **options)
    assert off(result.transform.parts[0].linear, start @ truth) < 0.15
    found = np.linalg.inv(start) @ result.transform.parts[0].linear
    check_kind(found, "rigid")
    result.save(tmp_path, report=False)
    np.testing.assert_allclose(in_itk(tmp_path / "transform.h5", kind), start @ found, atol=1e-6)


@pytest.mark.parametrize("kind", ["rigid", "similarity"])
@pytest.mark.parametrize("scales", [(1, 1, 1), (1.2, 0.9, 1.1), (-1, 1, 1)])
def test_the_nearest_of_a_kind_is_least_squares(kind, scales):
    """No other motion of the kind carries the box's points nearer to where they belong."""
    linear = motion((20, 30, -50)) @ SHEAR @ np.diag((*scales, 1.0))
    points = FIXED.corners
    best = nearest_of_kind(linear, kind, FIXED)
    assert is_of_kind(best, kind) and not is_of_kind(linear, kind)

    def left(matrix):
        return np.square(apply_matrix(matrix, points) - apply_matrix(linear, points)).sum()

    for degrees, shift, scale in (
        ((0.5, 0, 0), (0,) * 3, 1),
        ((0, -0.5, 0), (0,) * 3, 1),
        ((0, 0, 0.5), (0.2, 0, 0), 1),
    ):
        assert left(best) < left(motion(degrees, shift, scale) @ best)
    if kind == "similarity":
        assert left(best) < min(left(motion((0,) * 3, (0,) * 3, scale) @ best) for scale in (0.99, 1.01))


@pytest.mark.parametrize("degrees", [(0, 0, 0), (90, 20, 40), (180, 0, 0), (0, 179.9999, 0), (0, 0, -180), (30, 90, 0)])
@pytest.mark.parametrize("kind", ["rigid", "similarity"])
def test_any_turn_is_written(degrees, kind, tmp_path):
    linear = motion(degrees, scale=0.8 if kind == "similarity" else 1.0)
    for name in ("a.tfm", "a.h5"):
        write_transform(WorldTransform(linear, kind=kind), tmp_path / name)
        found = in_itk(tmp_path / name, kind)
        check_kind(found, kind)
        # ITK keeps versors of half turns to 1e-5.
        np.testing.assert_allclose(apply_matrix(found, FIXED.corners), apply_matrix(linear, FIXED.corners), atol=0.01)


REFUSED = {
    "bent": ({"transform": "bent"}, "transform='bent': give one of rigid, similarity, affine, deformable"),
    "a field of none": ({"transform": "deformable", "preset": "affine-opt"},
        "transform=deformable: preset affine-opt is an affine alone"),
    "steps of none": ({"transform": "rigid", "preset": "fast", "vsvf_steps": 2},
        "vsvf_steps: are deformable, which transform rigid is not"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(options, words):
    with pytest.raises(InputError, match=words):
        config_values(options)


@pytest.mark.parametrize(("seed", "sigma"), [(0, 2.0), (0, 4.0), (5, 3.0), (5, 4.0)])
def test_a_rigid_motion_is_found_though_the_start_correlates_better(seed, sigma):
    """Of smooth images that end at other places, correlation prefers ends that lie on ends to the motion."""
    random = np.random.default_rng(seed)
    scene = gaussian_filter(random.normal(size=(44, 52, 40)), sigma)
    turn, images = Rotation.from_rotvec(np.radians(5) * np.array((0.3, 0.9, -0.3))).as_matrix(), []
    for to_scene, step in ((np.eye(3), np.ones(3)), (turn, np.array((0.94, 1.06, 1.03)))):
        shape = np.ceil(0.86 * np.array(scene.shape) / step).astype(int)
        frame = Frame.from_parts(tuple(shape.tolist()), step, -(shape - 1) / 2 * step, np.eye(3), name="made")
        where = frame.voxel_to_world(np.indices(shape).reshape(3, -1).T) @ to_scene.T
        where += (np.array(scene.shape) - 1) / 2
        array = map_coordinates(scene, where.T, order=3, mode="nearest").reshape(shape)
        images.append(Image(array.astype(np.float32), frame, "made"))
    found = Registrar(transform="rigid", device="cpu")(Pair(*images))
    points = images[0].frame.corners * 0.7
    assert np.linalg.norm(found.transform.points(points) - points @ turn, axis=1).max() < 0.5  # they move by 1.5 to 2
