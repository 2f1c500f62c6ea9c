"""A transform to start from is trusted, and part of what is written, forth and back, as SimpleITK reads it."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from refusals import one_line
from scripts.api import register
from scripts.cli.main import main
from scripts.formats import save_volume, write_transform
from scripts.registration import Start
from scripts.spatial import Frame, WorldTransform, resample_image
from scripts.transform import Transform
from world_cases import save_field, sitk_points

FRAME = Frame((40, 44, 36), np.array([[1.5, 0, 0, -30], [0, 1.5, 0, -33], [0, 0, 1.5, 10], [0, 0, 0, 1.0]]))
OPTIONS = {"transform": "affine", "grid_voxels": 16_000, "device": "cpu"}


def body():
    """A lopsided body with blobs on `FRAME`."""
    at = np.stack(np.meshgrid(*(np.linspace(-1.4, 1.4, n) for n in FRAME.shape), indexing="ij"))
    inside = (at[0] / 0.8) ** 2 + (at[1] / 1.1) ** 2 + (at[2] / 0.7) ** 2 + 0.35 * at[0] * at[1] + 0.3 * at[2] < 1
    blobs = gaussian_filter(np.random.default_rng(0).normal(size=FRAME.shape), 2.5)
    blobs = (blobs - blobs.min()) / np.ptp(blobs)
    return (gaussian_filter(inside.astype(float), 0.7) * (0.3 + 0.7 * blobs)).astype(np.float32)


def affine(degrees=0.0, axis=(0, 0, 1), shift=(0, 0, 0), shape=None):
    """A turn about the body's middle and a shift, after a shape."""
    matrix, centre = np.eye(4), FRAME.centre
    turn = Rotation.from_rotvec(np.radians(degrees) * np.array(axis) / np.linalg.norm(axis)).as_matrix()
    matrix[:3, :3] = turn @ (np.eye(3) if shape is None else np.array(shape))
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre + shift
    return WorldTransform(matrix)


def bend():
    """A smooth field of up to some mm."""
    field = gaussian_filter(np.random.default_rng(1).normal(size=(*FRAME.shape, 3)), (8, 8, 8, 0))
    return WorldTransform(np.eye(4), 4 * field / np.abs(field).max(), FRAME)


TURN = affine(110, (1, 2, 3), (60, -40, 25))
SHEAR = affine(70, (1, 0, 0), (0, 30, 0), [[1.1, 0.15, 0], [0, 0.95, 0.1], [0, 0, 1]])
# What is given, and the chain that it stands for.
STARTS = {
    "rigid": (["turn.tfm"], Transform([TURN])),
    "inverse of a rigid one": (["inverse:turn.h5"], Transform([TURN]).inverse()),
    "sheared": (["shear.txt"], Transform([SHEAR])),
    "two, the first acts first": (["shear.tfm", "turn.tfm"], Transform([SHEAR, TURN])),
    "a field": (["bend.nii.gz"], Transform([bend()])),
    "inverse of a field": (["inverse:bend.nii.gz"], Transform([bend()]).inverse()),
    "a field, then an affine": (["bend.nii.gz", "turn.tfm"], Transform([bend(), TURN])),
    "an affine, then a field": (["bend.nii.gz", "inverse:turn.tfm"],
        Transform([bend()]).then(Transform([TURN]).inverse())),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("starts")
    for name in ("turn.tfm", "turn.h5"):
        write_transform(TURN, folder / name)
    for name in ("shear.tfm", "shear.txt"):
        write_transform(SHEAR, folder / name)
    save_field(bend().displacement * (-1, -1, 1), FRAME.affine, folder / "bend.nii.gz")
    save_volume(body(), FRAME.affine, folder / "fixed.nii.gz")
    return folder


def moving_under(truth):
    """An image of which the body, carried by the truth, is all: the array and its affine."""
    there = truth.points(FRAME.corners)
    low, high = there.min(axis=0) - 3, there.max(axis=0) + 3
    grid = np.diag([1.5, 1.5, 1.5, 1.0])
    grid[:3, 3] = low
    frame = Frame(tuple(int(n) for n in np.ceil((high - low) / 1.5)), grid)
    return resample_image(body(), FRAME, frame, truth.inverse().parts), frame.affine


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", STARTS)
def test_what_is_written_holds_the_start(name, files, tmp_path):
    given, truth = STARTS[name]
    paths = [f"inverse:{files / one[8:]}" if one.startswith("inverse:") else str(files / one) for one in given]
    result = register((body(), FRAME.affine), moving_under(truth), initial_transform=paths, **OPTIONS)
    inner = FRAME.voxel_to_world(np.argwhere(body() > 0.2)[::300])
    there = result.transform.points(inner)
    assert np.linalg.norm(there - truth.points(inner), axis=1).max() < 0.9
    assert result.metrics["initialisation"]["method"] == "transform" and result.metrics["folds"] == 0
    assert result.metrics["similarity"]["ncc"]["before"] > 0.98
    assert len(result.metrics["settings"]["initial_transform"]["sha256"]) == 64
    # The start itself is within: without it nothing is near.
    assert np.corrcoef(result.moved[0].ravel(), body().ravel())[0, 1] > 0.98
    result.save(tmp_path / "out", report=False)
    np.testing.assert_allclose(sitk_points(sitk.ReadTransform(tmp_path / "out/transform.h5"), inner), there, atol=2e-3)
    back = sitk_points(sitk.ReadTransform(tmp_path / "out/inverse_transform.h5"), there)
    assert np.linalg.norm(back - inner, axis=1).max() < 0.1
    assert (tmp_path / "out/affine.tfm").exists() == ("field" not in name)
    if "field" not in name:
        affine = sitk_points(sitk.ReadTransform(tmp_path / "out/affine.tfm"), inner)
        np.testing.assert_allclose(affine, there, atol=2e-3)
    assert list((tmp_path / "out").glob("displacement.nii.gz"))


def test_a_transform_in_memory_goes_on_where_a_registration_ended():
    """The second registration starts from the first one's deformation, and its own inverse is taken over."""
    moving = moving_under(Transform([bend(), TURN]))
    options = {**OPTIONS, "transform": "deformable"}
    first = register((body(), FRAME.affine), moving, **options)
    second = register((body(), FRAME.affine), moving, initial_transform=first.transform, **options)
    assert second.metrics["similarity"]["ncc"]["before"] == pytest.approx(
        first.metrics["similarity"]["ncc"]["final"], abs=5e-3
    )
    assert second.metrics["similarity"]["ncc"]["final"] >= second.metrics["similarity"]["ncc"]["before"] - 1e-3
    assert second.metrics["inverse_consistency_mm"]["max"] < 0.2


def test_the_inverse_of_an_inverse_is_the_transform():
    chain = Transform([bend(), TURN])
    points = FRAME.corners * 0.5
    np.testing.assert_allclose(chain.inverse().inverse().points(points), chain.points(points), atol=1e-9)


def test_masks_and_labels_follow_the_start():
    label = (body() > 0.3).astype(np.uint8)
    moving, matrix = moving_under(Transform([SHEAR]))
    moving_label = (moving > 0.3).astype(np.uint8)
    result = register((body(), FRAME.affine), (moving, matrix), fixed_label=(label, FRAME.affine),
        moving_label=(moving_label, matrix), moving_mask=(moving > 0.05, matrix), initial_transform=Transform([SHEAR]),
        **OPTIONS)  # fmt: skip
    assert result.metrics["labels"]["mean"]["dice"]["before"] > 0.95
    assert result.metrics["labels"]["mean"]["dice"]["final"] > 0.95


def test_another_transform_in_the_same_file_is_another_request(files):
    given = [[files / "turn.tfm"], [files / "turn.h5"], [f"inverse:{files / 'turn.tfm'}"], [files / "bend.nii.gz"]]
    digests = [Start.read(one).facts["sha256"] for one in given]
    assert len(set(digests)) == 3 and digests[0] == digests[1]


REFUSED = {
    "absent": ({"initial_transform": "nowhere.tfm"}, "nowhere.tfm"),
    "inverse of what is absent": ({"initial_transform": ["inverse:nowhere.h5"]}, "nowhere.h5"),
    "no transform": ({"initial_transform": "fixed.nii.gz"}, "fixed.nii.gz"),
    "nothing": ({"initial_transform": []}, "initial_transform"),
    "an empty word": ({"initial_transform": "inverse:"}, "initial_transform"),
    "with a search": ({"initial_transform": "turn.tfm", "initialisation": "search"}, "initialisation=search"),
    "with another start": ({"initial_transform": "turn.tfm", "initialisation": "header"}, "initialisation=header"),
    "with boxes of their own": ({"initial_transform": "turn.tfm", "extent": "own"}, "extent"),
    "the wrong way round": ({"initial_transform": "inverse:turn.tfm"}, "inverse:"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_start_is_refused_in_a_line(name, files, monkeypatch):
    monkeypatch.chdir(files)
    options, words = REFUSED[name]
    with one_line(words):
        register((body(), FRAME.affine), moving_under(Transform([TURN])), **OPTIONS, **options)


def test_command_line(files, tmp_path, capsys):
    array, matrix = moving_under(Transform([SHEAR, TURN]))
    save_volume(array, matrix, tmp_path / "moving.nii.gz")
    command = ["register", "--fixed", str(files / "fixed.nii.gz"), "--moving", str(tmp_path / "moving.nii.gz")]
    command += ["--output", str(tmp_path / "out"), "--transform", "affine", "--no-report"]
    command += ["--grid-voxels", "16000"]
    assert main([*command, "--initial-transform", str(files / "shear.tfm"), str(files / "turn.tfm")]) == 0
    inner = FRAME.voxel_to_world(np.argwhere(body() > 0.2)[::300])
    there = sitk_points(sitk.ReadTransform(tmp_path / "out/transform.h5"), inner)
    assert np.linalg.norm(there - Transform([SHEAR, TURN]).points(inner), axis=1).max() < 0.9
    for words, told in (
        (["inverse:nowhere.tfm"], "nowhere.tfm"),
        (["turn.tfm", "--initialisation", "search"], "--initial-transform"),
    ):
        capsys.readouterr()
        try:
            status = main([*command, "--initial-transform", *words])
        except SystemExit as ended:
            status = ended.code
        assert status != 0 and told in capsys.readouterr().err
