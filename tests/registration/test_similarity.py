"""What images are compared by: any two contrasts, known warps, lesions that are masked, and what is refused."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter, map_coordinates

from scripts.errors import InputError
from scripts.formats import Image
from scripts.registration import Pair, Registrar
from scripts.settings import config_values
from scripts.spatial import Frame

SHAPE = (44, 48, 40)
FRAME = Frame(SHAPE, np.diag([2.0, 2.0, 2.0, 1.0]))
GREYS = {"one": (0, 0.3, 0.9, 0.5, 1.0, 0.7), "other": (0, 0.9, 0.4, 1.0, 0.6, 0.2)}
PLACES = np.stack(np.indices(SHAPE), axis=-1).astype(float)
FROM_MIDDLE = (PLACES - np.array(SHAPE) / 2 + 0.5) / (np.array(SHAPE) / 2)


def tissues():
    """Five tissues in a head of air, and the head."""
    head = (np.square(FROM_MIDDLE).sum(-1) < 0.75).astype(float)
    noise = gaussian_filter(np.random.default_rng(3).normal(size=SHAPE), 2.5)
    return head * (1 + np.clip(np.searchsorted(np.quantile(noise[head > 0], [0.2, 0.4, 0.6, 0.8]), noise), 0, 4)), head


def scan(contrast, shift=None):
    """An image of the tissues, at places that are shifted, voxels ``(..., 3)``."""
    classes, _ = tissues()
    grey = gaussian_filter(np.take(GREYS[contrast], classes.astype(int)), 0.6)
    if shift is not None:
        grey = map_coordinates(grey, np.moveaxis(PLACES + shift, -1, 0), order=1)
    noise = np.random.default_rng(len(contrast)).normal(size=SHAPE)
    return Image((grey + 0.01 * noise).astype(np.float32), FRAME, f"{contrast}.nii.gz")


@pytest.fixture(scope="module")
def shift():
    """A warp of 3 voxels at the most, and a shift."""
    random = np.random.default_rng(1)
    field = np.stack([gaussian_filter(random.normal(size=SHAPE), 7) for _ in range(3)], axis=-1)
    return 3 * field / np.linalg.norm(field, axis=-1).max() + np.array([1.5, -1.0, 0.5])


def registered(fixed, moving, shift, where=None, **settings):
    """The result, and the mean errors of its affine and of the whole in the head, voxels."""
    masks = {"fixed_mask": settings.pop("fixed_mask", None)}
    result = Registrar(initialisation="header", **settings)(Pair(fixed, moving, **masks))
    inside = tissues()[1] > 0 if where is None else where
    there, here = 2 * PLACES[inside], 2 * (PLACES + shift)[inside]
    stages = (result.accepted.affine, result.accepted.transform)
    return result, [np.linalg.norm(one.apply(here) - there, axis=1).mean() / 2 for one in stages]


@pytest.mark.parametrize("change", [None, "other", "inverted"])
def test_auto_takes_what_the_pair_asks_for(change, shift):
    fixed, moving = scan("one" if change != "other" else "other"), scan("one", shift)
    if change == "inverted":
        moving = Image(1 - moving.array, FRAME, "inverted.nii.gz")
    result, (affine, final) = registered(fixed, moving, shift)
    facts = result.metrics["optimisation"]
    assert facts["similarity"] == ("mind" if change else "lncc") and (facts["contrast_gain"] > 0.05) == bool(change)
    assert facts["similarity_reason"].startswith("two" if change else "one")
    assert final < 0.65 * affine and result.metrics["folds"] == 0 and str(result.verdict) != "FAIL"
    # ITK's mutual information, which knows nothing of ours, agrees.
    values = [mattes(fixed, result.warped.moved[stage]) for stage in ("before", "final")]
    assert values[1] < values[0] - 0.05


@pytest.mark.parametrize(("fold", "similarity"), [(0, "lncc"), (0.25, "mind")])
def test_a_scale_that_is_folded_is_another_contrast(fold, similarity):
    """Only the way there tells it: the same grey of the moving image stands for two of the fixed one."""
    smooth = gaussian_filter(np.random.default_rng(3).normal(size=SHAPE), 4)
    greys = np.argsort(np.argsort(smooth.ravel())).reshape(SHAPE) / smooth.size
    moving = map_coordinates(greys, np.moveaxis(PLACES + np.array([1.5, -1, 0.5]), -1, 0), order=1, mode="nearest")
    images = (greys, np.abs(moving - fold))
    pair = Pair(*(Image(one.astype(np.float32), FRAME, f"{n}.nii.gz") for n, one in enumerate(images)))
    facts = Registrar(initialisation="header", transform="affine")(pair).metrics["optimisation"]
    assert facts["similarity_reason"].startswith("two" if similarity == "mind" else "one")
    assert (facts["contrast_gain"] > 0.08) == (similarity == "mind")


def mattes(fixed, moved):
    """SimpleITK's metric, lower for more alike."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetInitialTransform(sitk.Euler3DTransform())
    return method.MetricEvaluate(*(sitk.GetImageFromArray(one.astype(np.float32)) for one in (fixed.array, moved)))


@pytest.mark.parametrize("name", ["lncc", "mind", "nmi", "ssd"])
def test_each_goes_on_from_its_affine(name, shift):
    fixed, moving = scan("other" if name in ("mind", "nmi") else "one"), scan("one", shift)
    result, (affine, final) = registered(fixed, moving, shift, similarity=name)
    assert result.metrics["optimisation"]["similarity"] == result.metrics["settings"]["method"]["similarity"] == name
    assert affine < np.linalg.norm(shift, axis=-1).mean() and result.metrics["folds"] == 0
    assert final < (1.05 if name == "nmi" else 0.7) * affine
    doubt = result.accepted.doubt
    assert doubt.agreement >= doubt.affine_agreement


@pytest.mark.parametrize("name", ["lncc", "mind"])
def test_a_masked_lesion_leaves_the_map_smooth(name, shift):
    """Cost-function masking: the map goes through a lesion as if it were not there."""
    ball = np.square(PLACES - np.array([22, 24, 20])).sum(-1) < 7**2
    fixed, moving = scan("one" if name == "lncc" else "other"), scan("one", shift)
    ill = Image(np.where(ball, gaussian_filter(ball * 1.5, 1), fixed.array).astype(np.float32), FRAME, "ill.nii.gz")
    mask = Image(~(np.square(PLACES - np.array([22, 24, 20])).sum(-1) < 9**2), FRAME, "mask.nii.gz")
    well = registered(fixed, moving, shift, ball, similarity=name)[1][1]
    masked, (_, error) = registered(ill, moving, shift, ball, similarity=name, fixed_mask=mask)
    bare = registered(ill, moving, shift, ball, similarity=name)[1][1]
    assert error < bare and error < well + 0.7
    field = masked.accepted.displacement[ball]
    assert field.std(axis=0).max() < 2 * 1.5 * shift[ball].std(axis=0).max() + 1


@pytest.mark.parametrize(("settings", "says"), [
    ({"similarity": "ncc"}, "similarity='ncc': give one of auto, lncc, nmi, mind, ssd"),
    ({"similarity": 3}, "similarity=3: give one of"),
    ({"similarity": "mind", "preset": "fast"}, "similarity=mind: .* preset fast .* give preset default"),
])  # fmt: skip
def test_refused(settings, says):
    with pytest.raises(InputError, match=says):
        config_values(settings)
