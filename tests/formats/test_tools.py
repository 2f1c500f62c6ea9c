"""``avsm convert`` to other tools and from them: what the tools, or their own libraries, make of the same files."""

import gzip
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nitransforms.nonlinear import DenseFieldTransform

from image_files import turned_image
from scripts import apply, load_transform
from scripts.cli import main
from scripts.formats import Points, write_points, write_transform
from scripts.spatial import Frame, WorldTransform, ras_to_lps
from scripts.transform import Transform

NEAR = 0.01  # mm
TURNS = {"oblique": (0.1, 0.2, -0.1), "straight": (0.0, 0.0, 0.0)}


def make(folder, turn):
    """Two images, an affine and a bend between them."""
    turned_image(folder / "fixed.nii.gz", (24, 26, 22), (1.5, 1.6, 2.0), turn)
    turned_image(folder / "moving.nii.gz", (25, 25, 21), (1.6, 1.4, 2.1), turn, -1)
    linear = np.eye(4)
    linear[:3] += 0.04 * np.random.default_rng(2).normal(size=(3, 4)) * (1, 1, 1, 50)
    fixed = nib.load(folder / "fixed.nii.gz")
    grid = Frame((9, 9, 8), fixed.affine @ np.diag((3.2, 3.3, 3.1, 1)))
    write_transform(WorldTransform(linear), folder / "affine.tfm")
    bend = WorldTransform(linear, 1.5 * np.random.default_rng(3).normal(size=(*grid.shape, 3)), grid)
    write_transform(bend, folder / "bend.h5")
    return folder


@pytest.fixture(params=TURNS)
def folder(tmp_path, request):
    return make(tmp_path, TURNS[request.param])


@pytest.fixture
def straight(tmp_path):
    return make(tmp_path, TURNS["straight"])


def convert(folder, *words):
    images = [word for role in ("fixed", "moving") for word in (f"--{role}", str(folder / f"{role}.nii.gz"))]
    files = [str(folder / word) for word in words[:2]]
    assert main(["convert", *files, *words[2:], *images]) == 0
    return folder / words[1]


def voxels(folder, margin=2):
    """Voxels of the fixed image, where they are and where the bend carries them, RAS mm."""
    grid = nib.load(folder / "fixed.nii.gz")
    index = np.stack(np.indices(np.array(grid.shape) - 2 * margin), -1).reshape(-1, 3) + margin
    points = nib.affines.apply_affine(grid.affine, index)
    there = Transform.read(folder / "bend.h5").points(points)
    assert np.abs(there - points).max() > 3
    return index, points, there


def read_back(folder, file, points):
    """Our own points through a file that needs both images."""
    assert convert(folder, file, "back.h5")
    return Transform.read(folder / "back.h5").points(points)


# FreeSurfer


def test_a_warp_in_mgz_is_surfas_both_ways(folder):
    surfa = pytest.importorskip("surfa")
    if np.lib.NumpyVersion(np.__version__) >= "2.3.0":
        pytest.skip("surfa 0.6.3 reads nothing with NumPy 2.3")
    index, points, there = voxels(folder)
    warp = surfa.load_warp(str(convert(folder, "bend.h5", "warp.mgz")))
    places = warp.convert(warp.Format.abs_ras).data[tuple(index.T)]
    np.testing.assert_allclose(places, there, atol=NEAR)
    np.testing.assert_allclose(warp.source.vox2world.matrix, nib.load(folder / "moving.nii.gz").affine, atol=1e-4)
    for kind in ("abs_crs", "disp_crs", "abs_ras", "disp_ras"):
        warp.convert(getattr(warp.Format, kind)).save(str(folder / f"{kind}.mgz"))
        np.testing.assert_allclose(read_back(folder, f"{kind}.mgz", points), there, atol=NEAR)


def test_an_lta_is_surfas_both_ways(folder):
    surfa = pytest.importorskip("surfa")
    _, points, _ = voxels(folder)
    read = surfa.load_affine(str(convert(folder, "affine.tfm", "affine.lta"))).convert(space="world")
    there = Transform.read(folder / "affine.tfm").points(points)
    np.testing.assert_allclose(read.transform(there), points, atol=NEAR)  # moving to fixed
    read.save(str(folder / "theirs.lta"))
    np.testing.assert_allclose(read_back(folder, "theirs.lta", points), there, atol=NEAR)


def geometry(image):
    """A VOL_GEOM of FreeSurfer."""
    spacing = nib.affines.voxel_sizes(image.affine)
    middle = nib.affines.apply_affine(image.affine, np.array(image.shape) / 2)
    numbers = (*spacing, *(image.affine[:3, :3] / spacing).T.ravel(), *middle)
    return struct.pack(">4i15f512s", 1, *image.shape, *numbers, b"image.mgz")


@pytest.mark.parametrize("places", ["voxels", "RAS"])
def test_an_m3z_is_read_by_its_documented_layout(folder, places):
    """As __m3zWrite of gcamorph.cpp: nodes two voxels apart, a label each, a matrix; one node is invalid."""
    fixed, moving = (nib.load(folder / f"{role}.nii.gz") for role in ("fixed", "moving"))
    shape = tuple(n // 2 for n in fixed.shape)
    index = np.stack(np.indices(shape), -1)
    points = nib.affines.apply_affine(fixed.affine, 2 * index)
    there = Transform.read(folder / "bend.h5").points(points.reshape(-1, 3)).reshape(points.shape)
    numbers = there if places == "RAS" else nib.affines.apply_affine(np.linalg.inv(moving.affine), there)
    content = struct.pack(">f4if", 1.0, *shape, 2, 0.05)
    for node in np.ndindex(*shape):
        place = (0, 0, 0) if node == (0, 0, 0) else numbers[node]
        content += struct.pack(">6f3i", *place, *place, *node)
    content += struct.pack(">i", 10) + geometry(moving) + geometry(fixed)
    content += struct.pack(">ii", 11, 1 if places == "RAS" else 2)
    content += struct.pack(">i", 12) + bytes(4 * index[..., 0].size)
    content += struct.pack(">iiq1600s", 31, 0, 1600, b"Matrix 1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1")
    (folder / "warp.m3z").write_bytes(gzip.compress(content))
    ours = Transform.read(folder / "warp.m3z").points(points.reshape(-1, 3))
    np.testing.assert_allclose(ours[1:], there.reshape(-1, 3)[1:], atol=NEAR)
    # Of the invalid one a neighbour's displacement.
    near = (there - points)[tuple(np.array(((0, 0, 1), (0, 1, 0), (1, 0, 0))).T)]
    assert np.abs(ours[0] - points[0, 0, 0] - near).max(axis=1).min() < NEAR


def test_an_m3z_is_written_by_its_documented_layout(folder):
    index, points, there = voxels(folder)
    fixed, moving = (nib.load(folder / f"{role}.nii.gz") for role in ("fixed", "moving"))
    content = gzip.decompress(convert(folder, "bend.h5", "warp.m3z").read_bytes())
    assert struct.unpack_from(">f4i", content) == (1.0, *fixed.shape, 1)
    nodes = np.frombuffer(content, ">f4", 9 * np.prod(fixed.shape), 24).reshape(*fixed.shape, 9)
    places = nib.affines.apply_affine(moving.affine, nodes[tuple(index.T)][:, 3:6])
    np.testing.assert_allclose(places, there, atol=NEAR)
    tags = content[24 + 36 * np.prod(fixed.shape) :]
    for number, image in enumerate((moving, fixed)):
        written = struct.unpack_from(">4i15f", tags, 4 + 588 * number)
        np.testing.assert_allclose(written, struct.unpack_from(">4i15f", geometry(image)), atol=1e-4)
    assert struct.unpack(">i", tags[:4]) == (10,) and struct.unpack(">ii", tags[-8:]) == (11, 2)
    np.testing.assert_allclose(read_back(folder, "warp.m3z", points), there, atol=NEAR)


# Fields


def test_a_field_of_fnirt_is_fslpys_both_ways(folder):
    fsl = pytest.importorskip("fsl.transform.fnirt")
    from fsl.data.image import Image

    index, points, there = voxels(folder)
    fixed, moving = (Image(str(folder / f"{role}.nii.gz")) for role in ("fixed", "moving"))
    read = fsl.readFnirt(str(convert(folder, "bend.h5", "warp.nii.gz", "--tool", "fsl")), moving, fixed)
    theirs = read.transform(nib.affines.apply_affine(fixed.getAffine("voxel", "fsl"), index))
    np.testing.assert_allclose(nib.affines.apply_affine(moving.getAffine("fsl", "world"), theirs), there, atol=NEAR)
    fsl.toFnirt(fsl.fromFnirt(read, "world", "world")).save(str(folder / "theirs.nii.gz"))
    np.testing.assert_allclose(read_back(folder, "theirs.nii.gz", points), there, atol=NEAR)


@pytest.mark.slow
def test_a_field_and_a_matrix_of_niftyreg_are_reg_transforms_both_ways(folder):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from registration.peers.niftyreg import find_program

    if (program := find_program("reg_transform")) is None:
        pytest.skip("needs NiftyReg")
    index, points, _ = voxels(folder)
    fixed, again = str(folder / "fixed.nii.gz"), str(folder / "again.nii.gz")
    words = ("affine.tfm", "affine.txt"), ("bend.h5", "warp.nii.gz")
    for source, name in words:
        written = convert(folder, source, name, "--tool", "niftyreg")
        subprocess.run([program, "-ref", fixed, "-disp", str(written), again], check=True, capture_output=True)
        theirs = points + np.squeeze(nib.load(again).get_fdata())[tuple(index.T)]
        expected = Transform.read(folder / source).points(points)
        np.testing.assert_allclose(theirs, expected, atol=NEAR)
        np.testing.assert_allclose(Transform.read(again).points(points), expected, atol=NEAR)


def test_a_field_of_spm_holds_the_places_in_the_moving_image(folder):
    """By SPM's definition: five axes, RAS mm."""
    index, points, there = voxels(folder)
    written = nib.load(convert(folder, "bend.h5", "y_warp.nii", "--tool", "spm"))
    assert written.header["intent_name"].item() == b"Mapping" and written.shape == (24, 26, 22, 1, 3)
    np.testing.assert_allclose(written.get_fdata()[(*index.T, 0)], there, atol=NEAR)
    np.testing.assert_allclose(read_back(folder, "y_warp.nii", points), there, atol=NEAR)


@pytest.mark.slow
def test_a_field_of_spm_is_spms_both_ways(folder):
    """Under Octave; in the folder that AVSM_SPM names ``make -C src PLATFORM=octave install`` has been run."""
    spm, octave = os.environ.get("AVSM_SPM"), shutil.which("octave-cli")
    if not spm or not octave:
        pytest.skip("needs Octave, and SPM in the folder that AVSM_SPM names")
    index, points, there = voxels(folder)
    convert(folder, "bend.h5", "y_warp.nii", "--tool", "spm")
    moving = nib.load(folder / "moving.nii.gz")
    nib.save(moving, folder / "moving.nii")
    script = f"""
addpath('{spm}');
here = struct('saveusr', {{{{'{folder}'}}}});
job.comp = {{struct('def', {{{{'{folder}/y_warp.nii'}}}})}};
job.out = {{struct('savedef', struct('ofname', 'theirs.nii', 'savedir', here)), ...
  struct('pull', struct('fnames', {{{{'{folder}/moving.nii'}}}}, 'savedir', here, 'interp', 1, 'mask', 0, ...
  'fwhm', [0 0 0], 'prefix', 'w'))}};
spm_deformations(job);
"""
    (folder / "warp.m").write_text(script)
    subprocess.run([octave, "--quiet", str(folder / "warp.m")], check=True, capture_output=True)
    np.testing.assert_allclose(Transform.read(folder / "y_theirs.nii").points(points), there, atol=NEAR)
    at = nib.affines.apply_affine(np.linalg.inv(moving.affine), there)
    seen = np.all((at >= 0) & (at <= np.array(moving.shape) - 1), axis=1)  # beyond, each extends images its own way
    ours = apply(load_transform(folder / "y_warp.nii"), moving, nib.load(folder / "fixed.nii.gz"))
    ours, theirs = (image.get_fdata()[tuple(index[seen].T)] for image in (ours, nib.load(folder / "wmoving.nii")))
    assert seen.mean() > 0.5
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.01)  # of some hundreds


def test_a_field_of_afni_is_nitransforms_both_ways(straight):
    _, points, there = voxels(straight)
    read = DenseFieldTransform.from_filename(convert(straight, "bend.h5", "warp.nii.gz"), fmt="AFNI")
    np.testing.assert_allclose(read.map(points), there, atol=NEAR)
    read.to_filename(straight / "theirs.nii.gz", fmt="AFNI")
    theirs = nib.load(straight / "theirs.nii.gz")
    theirs.header.extensions.append(nib.nifti1.Nifti1Extension(4, b"<AFNI_attributes/>"))  # as AFNI itself does
    nib.save(theirs, straight / "theirs.nii.gz")
    np.testing.assert_allclose(read_back(straight, "theirs.nii.gz", points), there, atol=NEAR)


def test_a_field_in_x5_is_nitransforms_both_ways(folder):
    from nitransforms.io.x5 import to_filename

    _, points, there = voxels(folder)
    read = DenseFieldTransform.from_filename(convert(folder, "bend.h5", "warp.x5"))
    np.testing.assert_allclose(read.map(points), there, atol=NEAR)
    grid = nib.load(folder / "fixed.nii.gz")
    for deltas in (True, False):
        field = read._deltas if deltas else read._field
        to_filename(folder / "theirs.x5", [DenseFieldTransform(field, is_deltas=deltas, reference=grid).to_x5()])
        np.testing.assert_allclose(read_back(folder, "theirs.x5", points), there, atol=NEAR)


@pytest.mark.slow
def test_greedy_carries_points_by_our_field_and_matrix(folder):
    greedy = pytest.importorskip("picsl_greedy").Greedy3D()
    _, points, _ = voxels(folder)
    write_points(Points(points[::50]), folder / "points.vtk", "RAS")
    for words in (("bend.h5", "warp.nii.gz"), ("affine.tfm", "affine.mat", "--tool", "greedy")):
        written = convert(folder, *words)
        greedy.execute(f"-rf {folder}/fixed.nii.gz -rs {folder}/points.vtk {folder}/moved.vtk -r {written} -threads 1")
        expected = Transform.read(folder / words[0]).points(points[::50])
        theirs = nib_points(folder / "moved.vtk")
        np.testing.assert_allclose(theirs, expected, atol=NEAR)


def nib_points(file):
    """The points of a legacy VTK file, of any version."""
    words = file.read_text().split()
    start = words.index("POINTS")
    count = int(words[start + 1])
    return np.array(words[start + 3 : start + 3 + 3 * count], dtype=float).reshape(-1, 3)


@pytest.mark.slow
def test_transformix_carries_points_by_our_affine(folder):
    if importlib.util.find_spec("itk.ElastixPython") is None:
        pytest.skip("needs itk-elastix")
    import itk

    index, points, _ = voxels(folder)
    parameters = itk.ParameterObject.New()
    parameters.AddParameterFile(str(convert(folder, "affine.tfm", "TransformParameters.0.txt", "--tool", "elastix")))
    moving = itk.imread(str(folder / "moving.nii.gz"), itk.F)
    field = np.asarray(itk.transformix_deformation_field(moving, parameters)).transpose(2, 1, 0, 3) * (-1, -1, 1)
    expected = Transform.read(folder / "affine.tfm").points(points)
    np.testing.assert_allclose(points + field[tuple(index.T)], expected, atol=NEAR)
    np.testing.assert_allclose(read_back(folder, "TransformParameters.0.txt", points), expected, atol=NEAR)


def test_ome_zarr_is_ngff_zarrs_both_ways(folder):
    """Our store through its own conversion to ITK; a field that it wrote, here."""
    ngff = pytest.importorskip("ngff_zarr")
    import itk

    _, points, _ = voxels(folder)
    for source in ("affine.tfm", "bend.h5"):
        written = convert(folder, source, f"{source}.ome.zarr")
        transform = ngff.from_ome_zarr(written, kind="transformation")
        carried = ras_to_lps(points)
        for part in getattr(transform, "transformations", [transform]):
            path = getattr(part, "path", None)
            fields = {path: ngff.from_ome_zarr(written / path)} if path else None
            (found,) = ngff.ngff_transform_to_itk_transform(part, "zyx", fields=fields)
            carried = np.array([itk.transform_from_dict([asdict(found)]).TransformPoint(p.tolist()) for p in carried])
        expected = Transform.read(folder / source).points(points)
        np.testing.assert_allclose(ras_to_lps(carried), expected, atol=NEAR)
        np.testing.assert_allclose(read_back(folder, written.name, points), expected, atol=NEAR)


def test_a_store_without_some_of_its_chunks_is_told_of(folder):
    pytest.importorskip("ngff_zarr")
    written = convert(folder, "bend.h5", "holes.ome.zarr")
    chunks = [file for file in (written / "displacements").rglob("*") if file.is_file() and "c" in file.parts[-5:-1]]
    chunks[0].unlink()
    with pytest.warns(UserWarning, match="1 chunks of its field are missing"):
        Transform.read(written)


def test_a_store_holds_its_chunks_of_zeros_too(tmp_path, recwarn):
    pytest.importorskip("ngff_zarr")
    vectors = np.zeros((150, 8, 7, 3))
    vectors[:9, :, :, 0] = 1
    write = {"path": tmp_path / "zeros.ome.zarr", "fixed": None}
    Transform([WorldTransform(np.eye(4), vectors, Frame(vectors.shape[:3], np.eye(4)))]).save(**write)
    (part,) = (one for one in Transform.read(write["path"]).parts if one.frame is not None)
    assert np.abs(part.displacement).max() == 1 and not [w for w in recwarn if "chunks" in str(w.message)]


def test_a_store_that_is_there_or_damaged(straight, capsys):
    pytest.importorskip("ngff_zarr")
    file = convert(straight, "affine.tfm", "store.ome.zarr") / "zarr.json"
    for words, damage, message in (
        (["affine.tfm", "store.ome.zarr"], None, "is there already; remove it, or give another name"),
        (["store.ome.zarr", "out.h5"], lambda: file.write_text("{"), "is no transformation of OME-Zarr 0.6"),
        (["store.ome.zarr", "out.h5"], file.unlink, "is no transformation of OME-Zarr 0.6"),
        (["store.ome.zarr", "out.h5"], lambda: (file.parent.rmdir(), file.parent.touch()), "is a file, but OME-Zarr's"),
    ):
        if damage:
            damage()
        capsys.readouterr()
        assert main(["convert", *(str(straight / word) for word in words)]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_what_is_lost_between_voxels_is_told(folder, capsys):
    """And is what a file of the fixed grid makes of cells' middles; an affine loses nothing, nor does a .h5."""
    grid = nib.load(folder / "fixed.nii.gz")
    middles = np.stack(np.indices(np.array(grid.shape) - 1), -1).reshape(-1, 3) + 0.5
    points = nib.affines.apply_affine(grid.affine, middles)
    there = Transform.read(folder / "bend.h5").points(points)
    for source, name, told in (
        ("bend.h5", "out.nii.gz", True),
        ("bend.h5", "out.x5", True),
        ("bend.h5", "out.m3z", True),
        ("bend.h5", "out.h5", False),
        ("affine.tfm", "out.nii.gz", False),
    ):
        capsys.readouterr()
        file = convert(folder, source, name)
        said = re.fullmatch(rf"{re.escape(str(file))}(?: \(exact .* up to (\S+) mm off\))?\n", capsys.readouterr().out)
        assert (said[1] is not None) == told
        if told:
            off = np.linalg.norm(Transform.read(file).points(points) - there, axis=1)
            assert np.percentile(off, 99) < float(said[1]) <= off.max() + 0.01


def test_greedys_field_is_itks(folder):
    files = [convert(folder, "bend.h5", f"{tool}.nii", "--tool", tool) for tool in ("greedy", "itk")]
    assert files[0].read_bytes() == files[1].read_bytes()


REFUSED = {
    "tool": (["affine.tfm", "out.h5", "--tool", "spm"], "spm has no such kind of file"),
    "field": (
        ["bend.h5", "out.txt", "--tool", "elastix"],
        ".txt holds an affine only, and the transform has a field; name a .h5",
    ),
    "field in lta": (["bend.h5", "out.lta"], "name a .m3z file"),
    "field in 1D": (
        ["bend.h5", "out.aff12.1D"],
        ".1D holds an affine only, and the transform has a field; name a .nii.gz",
    ),
    "field in mat": (["bend.h5", "out.mat"], "name a .nii.gz file with --tool fsl"),
    "field for greedy": (["bend.h5", "out.mat", "--tool", "greedy"], "name a .nii.gz file with --tool greedy"),
    "inverse": (["inverse:bend.h5", "out.h5"], "write its field, as .nii.gz with the moving image as --fixed"),
    "image as nii": (["fixed.nii.gz", "out.h5"], "is an image: its shape is (24, 26, 22); give a transform"),
    "cut field": (["cut.nii.gz", "out.h5"], "truncated"),
    "no series": (["affine.tfm", "out.dcm"], "fixed.nii.gz: is no DICOM series"),
    "short m3z": (["short.m3z", "out.h5"], "is no .m3z file of FreeSurfer"),
    "cut m3z": (["cut.m3z", "out.h5"], "truncated"),
    "image": (["image.mgz", "out.h5"], "image.mgz: is an image; give a transform"),
    "no dicom": (["none.dcm", "out.h5"], "is no registration of DICOM"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(straight, capsys, name):
    (straight / "short.m3z").write_bytes(b"short")
    (straight / "cut.m3z").write_bytes(struct.pack(">f4if", 1.0, 5, 6, 7, 1, 0.05) + bytes(99))
    (straight / "none.dcm").write_bytes(b"nothing")
    field = convert(straight, "bend.h5", "field.nii.gz").read_bytes()
    (straight / "cut.nii.gz").write_bytes(field[: len(field) // 2])
    nib.save(nib.MGHImage(np.zeros((4, 5, 6), np.float32), np.eye(4)), straight / "image.mgz")
    words, message = REFUSED[name]
    images = [word for role in ("fixed", "moving") for word in (f"--{role}", str(straight / f"{role}.nii.gz"))]
    files = [
        f"inverse:{straight}/{f.removeprefix('inverse:')}" if f.startswith("inverse:") else str(straight / f)
        for f in words[:2]
    ]
    capsys.readouterr()
    assert main(["convert", *files, *words[2:], *images]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
