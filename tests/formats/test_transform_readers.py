"""Transforms of ours in ITK's Python package and in ANTs, and theirs here; importing ITK takes long."""

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from scripts.formats import read_transforms
from scripts.formats import to_sitk as to_world_sitk
from scripts.spatial import ras_to_lps
from world_cases import OBLIQUE, noise, some_points, to_sitk

pytestmark = pytest.mark.slow


def in_itk(transform, points):
    """RAS points through an ITK transform."""
    return ras_to_lps(np.array([transform.TransformPoint(point.tolist()) for point in ras_to_lps(points)]))


def chain(parts, points):
    for part in parts:
        points = part.apply(points)
    return points


KINDS = (
    "Affine Euler3D Similarity3D VersorRigid3D Versor ScaleVersor3D ScaleSkewVersor3D ComposeScaleSkewVersor3D "
    "QuaternionRigid Translation Scale ScaleLogarithmic Identity"
)


@pytest.mark.parametrize("kind", KINDS.split())
@pytest.mark.parametrize("suffix", [".tfm", ".h5", ".mat"])
def test_itks_own_files(tmp_path, kind, suffix):
    """Every linear kind of ITK's that other programs write, turned about a centre of its own."""
    import itk

    template = getattr(itk, f"{kind}Transform")
    transform = (template[itk.D] if (itk.D,) in template.keys() else template[itk.D, 3]).New()  # noqa: SIM118
    rest = np.asarray(transform.GetParameters())
    numbers = rest + np.random.default_rng(0).uniform(-0.1, 0.1, len(rest))
    transform.SetParameters(itk.OptimizerParameters[itk.D](numbers.tolist()))
    if hasattr(transform, "SetCenter"):
        transform.SetCenter([3.0, -4.0, 5.0])
    path, points = tmp_path / f"a{suffix}", some_points(OBLIQUE)
    if suffix == ".mat" and kind in ("Translation", "Identity"):
        pytest.skip("ITK writes no such file that it can read")
    itk.transformwrite([transform], str(path))
    np.testing.assert_allclose(chain(read_transforms(path), points), in_itk(transform, points), atol=1e-9)


def test_files_of_ants(tmp_path):
    """Affine (.mat), warps and composite of a registration by ANTs carry points as ANTs does."""
    ants = pytest.importorskip("ants")
    fixed = OBLIQUE
    images = to_sitk(noise(fixed.shape), fixed), to_sitk(noise(fixed.shape, 1), fixed)
    for image, name in zip(images, "fm", strict=True):
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    pair = [ants.image_read(str(tmp_path / f"{name}.nii.gz")) for name in "fm"]
    points = some_points(fixed, margin=-0.1)
    table = pd.DataFrame(ras_to_lps(points), columns=list("xyz"))
    for composite in (False, True):
        found = ants.registration(
            *pair, "SyN", outprefix=str(tmp_path / f"out{composite}"), write_composite_transform=composite,
            reg_iterations=(5,), aff_iterations=(5,), aff_shrink_factors=(1,), aff_smoothing_sigmas=(0,), random_seed=1,
        )["fwdtransforms"]  # fmt: skip
        files = [found] if isinstance(found, str) else found
        assert [file.endswith((".h5", ".mat", ".nii.gz")) for file in files] == [True] * len(files)
        ours = chain([part for file in files for part in read_transforms(file)], points)
        theirs = ants.apply_transforms_to_points(3, table, files)[["x", "y", "z"]].to_numpy()
        np.testing.assert_allclose(ours, ras_to_lps(theirs), atol=2e-3)
        assert np.abs(ours - points).max() > 0.1


def test_files_of_greedy(tmp_path):
    """Its affine (.mat) and its warp move an image as Greedy does."""
    greedy = pytest.importorskip("picsl_greedy").Greedy3D()
    image, moving = to_sitk(noise(OBLIQUE.shape), OBLIQUE), to_sitk(noise(OBLIQUE.shape, 1), OBLIQUE)
    affine, warp = tmp_path / "affine.mat", tmp_path / "warp.nii.gz"
    greedy.execute(f"-i f m -a -dof 12 -o {affine} -n 20 -m SSD -ia-identity -threads 1", f=image, m=moving)
    greedy.execute(f"-i f m -it {affine} -o {warp} -n 20 -m SSD -threads 1", f=image, m=moving)
    greedy.execute(f"-rf f -rm m moved -r {warp} {affine} -threads 1", f=image, m=moving, moved=None)
    with pytest.warns(UserWarning, match="taken for a matrix of Greedy or c3d"):
        parts = [*read_transforms(warp), *read_transforms(affine)]
    moved = sitk.Resample(moving, image, to_world_sitk(parts), sitk.sitkLinear, 0.0)
    inside = (slice(4, -4),) * 3
    there, here = (sitk.GetArrayFromImage(one)[inside] for one in (greedy["moved"], moved))
    assert np.abs(there - here).max() < 1e-5 and np.abs(here - sitk.GetArrayFromImage(moving)[inside]).max() > 0.05
