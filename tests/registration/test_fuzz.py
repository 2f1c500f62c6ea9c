"""Whole registrations of random images: any header, size, type and intensity ends in sound files or in one line."""

import json
import os
import warnings

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bad_files import shrink
from image_files import nifti
from scripts.cli import main
from scripts.formats.images import read_image
from scripts.formats.transform_files import read_transforms
from scripts.spatial.frame import Frame
from world_cases import frame

EXAMPLES = int(os.environ.get("AVSM_FUZZ", "25"))
TYPES = ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
VOLUMES = ("moved", "displacement", "jacobian")
ORDERS = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
SIGNS = st.sampled_from((-1, 1))

sizes = st.tuples(*[st.integers(2, 12)] * 3)
steps = st.floats(0.4, 6).map(lambda v: round(v, 3))
places = st.floats(-2000, 2000).map(lambda v: round(v, 2))
# Now and then a scale that a wrong unit makes: metres, micrometres.
frames = st.builds(
    lambda shape, angles, spacing, origin, flip, order, scale: Frame(
        shape, np.diag((scale, scale, scale, 1)) @ frame(shape, angles, spacing, origin, flip, order).affine
    ),
    sizes,
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.tuples(*[steps] * 3),
    st.tuples(*[places] * 3),
    st.tuples(*[SIGNS] * 3),
    st.sampled_from(ORDERS),
    st.sampled_from((1.0, 1.0, 1.0, 1e-3, 1e3)),
)
contents = st.tuples(st.sampled_from(("noise", "two values", "one voxel", "ramp", "outlier", "negative", "ends")),
    st.sampled_from(TYPES), st.sampled_from((1.0, 1.0, 1e30, 1e-30, 1e-42, 1e-300)), st.integers(0, 9))  # fmt: skip
# Fields of a header as a broken writer leaves them.
broken = st.one_of(
    *[st.just({})] * 7,
    st.dictionaries(
        st.sampled_from(
            ("sform_code", "qform_code", "quatern_b", "qoffset_x", "vox_offset", "scl_slope", "scl_inter", "xyzt_units")
        ),
        st.sampled_from((0, 1, 2, 3, 352, -5, 1e-3)),
        max_size=2,
    ),
    st.one_of(
        st.builds(lambda values: {"pixdim": values}, st.lists(st.sampled_from((1, -1, 0, 2, 1e-6, 1e6)), max_size=4)),
        st.builds(lambda values: {"dim": values}, st.lists(st.integers(-1, 13), min_size=1, max_size=5)),
        st.builds(lambda row: {"srow_x": row}, st.lists(st.floats(width=32), min_size=4, max_size=4)),
    ),
)
choices = st.fixed_dictionaries({"--preset": st.sampled_from(("fast", "fast", "instance"))},
    optional={"--initialisation": st.sampled_from(("geometry", "moments", "header")),
    "--extent": st.sampled_from(("common", "own")), "--interpolation": st.just("bspline"),
    "--dtype": st.sampled_from(("same", "int16", "uint8", "float64")), "--vsvf-steps": st.sampled_from(("0", "1")),
    "--grid-voxels": st.just("5000")})  # fmt: skip


def intensities(shape, kind, dtype, scale, seed):
    """An array (D, H, W)."""
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)
    array = rng.random(shape)
    if kind == "two values":
        array = np.rint(array)
    elif kind == "one voxel":
        array = np.zeros(shape)
        array[tuple(rng.integers(0, shape))] = 1
    elif kind == "ramp":
        array = np.broadcast_to(np.arange(shape[0])[:, None, None] / 12.0, shape).copy()
    elif kind == "outlier":
        array[0, 0, 0] = 1e6
    elif kind == "negative":
        array = -1 - array
    if dtype.kind == "f":
        return (array * scale).astype(dtype)
    limits = np.iinfo(dtype)
    if kind == "ends":
        return np.where(array < 0.5, limits.min, limits.max).astype(dtype)
    return np.clip(100 * array, limits.min, limits.max).astype(dtype)


images = st.builds(lambda where, content, fields: (where, content, fields), frames, contents, broken)


def write(path, image):
    """Write an image whose header may say what no writer would."""
    where, content, fields = image
    path.write_bytes(nifti(intensities(where.shape, *content), where.affine, **fields))
    return path


def check_result(folder, fixed, moving):
    """All files are there, can be read, and hold finite numbers."""
    metrics = json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    where = read_image(fixed).frame
    for name in VOLUMES:
        volume = nib.load(folder / f"{name}.nii.gz")
        assert volume.shape[:3] == where.shape
        np.testing.assert_allclose(volume.affine, where.affine, rtol=1e-5, atol=1e-5 * np.abs(where.affine).max())
        assert np.isfinite(np.asarray(volume.dataobj)).all(), name
    middle = where.centre[None]
    (forward,) = read_transforms(folder / "transform.h5")
    assert forward.covers(where.voxel_to_world([[0, 0, 0], np.asarray(where.shape) - 1])).all()
    back = forward.apply(middle)
    for part in read_transforms(folder / "inverse_transform.h5"):
        back = part.apply(back)
    assert np.isfinite(back).all() and read_transforms(folder / "affine.tfm")[0].frame is None
    assert metrics["moving"]["path"] == str(moving) and (folder / "summary.json").is_file()


@pytest.fixture
def numbered(tmp_path, monkeypatch):
    """A new folder at each call."""
    shrink(monkeypatch)
    names = iter(range(10**6))

    def folder():
        path = tmp_path / str(next(names))
        path.mkdir()
        return path

    return folder


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(fixed=images, moving=images, options=choices)
def test_register(numbered, weights, capfd, fixed, moving, options):
    folder = numbered()
    files = [write(folder / "f.nii", fixed), write(folder / "m.nii", moving)]
    words = ["register", "--fixed", str(files[0]), "--moving", str(files[1]), "--output", str(folder / "out")]
    words += ["--weights", weights, "--no-report", *(word for item in options.items() for word in item)]
    capfd.readouterr()
    with warnings.catch_warnings():
        # NumPy's complaints would reach the user's screen as two lines each.
        warnings.simplefilter("error", RuntimeWarning)
        status = main(words)
    screen = capfd.readouterr()
    assert not screen.out
    if status:
        assert screen.err.startswith("error: ") and screen.err.count("\n") == 1
        assert sorted(path.name for path in folder.iterdir()) == ["f.nii", "m.nii"]
    else:
        assert not screen.err
        check_result(folder / "out", *files)
