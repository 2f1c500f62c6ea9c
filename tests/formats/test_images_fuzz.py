"""Whatever a header says, an image is read or refused in one line."""

import gzip
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from image_files import metaimage, nifti, nrrd
from scripts.errors import InputError
from scripts.formats.images import read_image

FEW = settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 2.5, -3.0, np.nan, np.inf, -np.inf, 1e-30, 1e30, 1e-3]) | st.floats(width=32)
SIZES = st.integers(-2, 5) | st.sampled_from([2, 3, 4, 30000])
WORDS = NUMBERS.map(repr) | st.sampled_from(["", "none", "x", "1e400", "0x10", "1,2"])
DAMAGE = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=2)


def read_or_refuse(path, data, capfd):
    """Read a file of these bytes; the test fails for any exception but a one-line InputError, or a noisy screen."""
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("error", UserWarning)
        try:
            image = read_image(path)
        except InputError as error:
            assert str(error).startswith(str(path))
            assert "\n" not in str(error)
            image = None
    assert capfd.readouterr() == ("", "")
    if image is None:
        return False
    assert np.isfinite(image.frame.affine).all()
    assert (image.frame.spacing > 0).all()
    assert image.array.shape == image.frame.shape
    assert image.array.dtype.kind in "iuf"
    assert image.array.dtype.isnative
    assert np.isfinite(image.array).all()
    assert not any("\n" in note for note in image.notes)
    return True


def with_damage(data, damage, cut):
    data = bytearray(data)
    for place, value in damage:
        data[place % len(data)] = value
    return bytes(data[: len(data) - cut]) or b"\0"


@st.composite
def nifti_bytes(draw):
    fields = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "dim": st.lists(SIZES, min_size=1, max_size=6).map(lambda sizes: [len(sizes), *sizes])
                | st.lists(SIZES, max_size=8),
                "pixdim": st.lists(NUMBERS, max_size=8),
                "sform_code": st.integers(-1, 5),
                "qform_code": st.integers(-1, 5),
                "quatern_b": NUMBERS,
                "qoffset_x": NUMBERS,
                "srow_y": st.lists(NUMBERS, max_size=4),
                "datatype": st.sampled_from([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 2304, 77]),
                "scl_slope": NUMBERS,
                "scl_inter": NUMBERS,
                "vox_offset": NUMBERS | st.sampled_from([0, 352, 353, 400, 10000]),
                "xyzt_units": st.integers(0, 255),
            },
        )
    )
    with np.errstate(all="ignore"):
        return nifti(**fields)


def row(words, least, most):
    return st.lists(words, min_size=least, max_size=most).map(" ".join)


def vectors(least, most):
    vector = st.lists(WORDS, min_size=2, max_size=4).map(lambda words: f"({','.join(words)})")
    return row(vector | st.sampled_from(["none", "(1,0,0)", "(0,1,0)", "(0,0,1)"]), least, most)


TYPES = ["short", "float", "double", "uint8", "int8", "int64", "block", "x"]
META_BYTES = st.builds(
    metaimage,
    **{
        "NDims": st.sampled_from([3, 3, 3, 2, 4, 0, -1, 99, "x"]),
        "ElementSpacing": row(WORDS, 3, 3) | st.just("1 2 3"),
        "Offset": row(WORDS, 2, 4) | st.just("0 0 0") | st.none(),
        "TransformMatrix": row(WORDS, 9, 9) | st.just("1 0 0 0 1 0 0 0 1") | st.none(),
        "DimSize": row(SIZES.map(str), 2, 5) | st.just("6 7 8"),
        "ElementType": st.sampled_from(["MET_SHORT", "MET_FLOAT", "MET_CHAR", "MET_LONG_LONG", "MET_X", "MET_OTHER"]),
        "ElementNumberOfChannels": st.sampled_from([None, None, 1, 3, 0, "x"]),
        "CompressedData": st.sampled_from(["False", "False", "True"]),
        "BinaryData": st.sampled_from(["True", "True", "False"]),
    },
)
NRRD_BYTES = st.builds(
    nrrd,
    dimension=st.sampled_from([3, 3, 3, 2, 4, 0, 99, "x"]),
    sizes=row(SIZES.map(str), 2, 5) | st.just("6 7 8"),
    space_directions=vectors(3, 4) | st.just("(1,0,0) (0,2,0) (0,0,3)") | st.none(),
    space_origin=vectors(1, 1) | st.just("(0,0,0)") | st.none(),
    space=st.sampled_from(["left-posterior-superior", "RAS", "scanner-xyz", "3D-right-handed", "x", None]),
    type=st.sampled_from(TYPES),
    encoding=st.sampled_from(["raw", "raw", "gzip", "ascii", "bzip2", "x"]),
    kinds=st.sampled_from([None, None, "domain domain domain", "vector domain domain", "complex domain domain"]),
    spacings=st.none() | row(WORDS, 3, 3),
)


@pytest.mark.parametrize(
    ("suffix", "made", "sound"),
    [("nii", nifti_bytes(), nifti()), ("mha", META_BYTES, metaimage()), ("nrrd", NRRD_BYTES, nrrd())],
    ids=["nifti", "metaimage", "nrrd"],
)
def test_any_header_is_read_or_refused(tmp_path, capfd, suffix, made, sound):
    done = {True: 0, False: 0}

    @FEW
    @given(made | st.just(sound), DAMAGE, st.sampled_from([0, 0, 0, 1, 100, 600]), st.booleans())
    def run(data, damage, cut, packed):
        data = with_damage(data, damage, cut)
        packed = packed and suffix == "nii"
        path = tmp_path / f"image.{suffix}{'.gz' if packed else ''}"
        done[read_or_refuse(path, gzip.compress(data, 1) if packed else data, capfd)] += 1

    run()
    assert min(done.values()) > 10  # both ends are reached
