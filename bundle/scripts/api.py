"""The functions of the package: register, series, template, longitudinal, apply, jacobian, evaluate, load_transform.

An image is a path (NIfTI, NRRD, MetaImage, or a folder with one DICOM series), a nibabel, SimpleITK or ITK image, a
MONAI ``MetaTensor`` ``(D, H, W)`` or ``(1, D, H, W)``, or a pair ``(array, affine)`` of a ``(D, H, W)`` array and its
4×4 matrix from voxels to RAS millimetres. What goes in in one kind comes back in that kind.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError
from .formats import (
    Image,
    image_like,
    names_of,
    points_from,
    read_image,
    read_label,
    read_label_names,
    read_mask,
    read_volume,
)
from .settings import (
    CHANNELS,
    FILES,
    LONGITUDINAL,
    SERIES,
    SETTINGS,
    TEMPLATE,
    check_landmarks,
    check_measured,
    config_values,
    series_values,
    template_values,
)
from .spatial import Frame
from .transform import Transform

if TYPE_CHECKING:
    from .registration import Result, Series

__all__ = ["apply", "evaluate", "jacobian", "load_transform", "longitudinal", "register", "series", "template"]


def register(
    fixed: Any,
    moving: Any,
    *,
    fixed_label: Any = None,
    moving_label: Any = None,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    fixed_points: Any = None,
    moving_points: Any = None,
    fixed_channels: Sequence[Any] = (),
    moving_channels: Sequence[Any] = (),
    channel_weights: Sequence[float] | None = None,
    preset: str | None = None,
    model: str | None = None,
    weights: str | os.PathLike | None = None,
    initialisation: str | None = None,
    initial_transform: Any = None,
    transform: str | None = None,
    similarity: str | None = None,
    label_weight: float | None = None,
    label_names: str | os.PathLike | None = None,
    point_weight: float | None = None,
    point_tolerance: float | None = None,
    space: str | None = None,
    affine_steps: int | None = None,
    vsvf_steps: int | None = None,
    grid: Sequence[int] | None = None,
    grid_voxels: int | None = None,
    extent: str | None = None,
    interpolation: str | None = None,
    label_interpolation: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    seed: int | None = None,
) -> Result:
    """Register a moving image to a fixed image: affine, then deformable, in true physical space.

    The result is that of the command ``avsm register`` with the same options. None stands for an option's default,
    which ``avsm register --help`` shows.

    Args:
        fixed: the image whose grid the result has; see `scripts.api` for the kinds of images.
        moving: the image that is warped onto it.
        fixed_label: label map of the fixed image; measured with, and registered by with ``label_weight``.
        moving_label: label map of the moving image; warped along.
        fixed_mask: where in the fixed image the similarity counts.
        moving_mask: the same of the moving image.
        fixed_points: landmarks of the fixed image, a file or an array ``(N, 3)`` in mm; they are measured and, unless
            ``point_weight`` is 0, registered by.
        moving_points: the same landmarks in the moving image, in the same order.
        fixed_channels: further images in the space of the fixed one, each on its own grid, such as another contrast.
        moving_channels: as many in the space of the moving image, in the same order, to be laid on them.
        channel_weights: of these, one for each, that of ``fixed`` and ``moving`` being 1; None: 1 each.
        preset: how to register. ``"default"``: optimisation of this pair from coarse to fine, at the images' own
            resolution; ``"best"``: with more steps; ``"fast"``: a network, for anatomy that it knows;
            ``"affine-opt"``: an affine alone; ``"vsvf-opt"``: the paper's optimiser; ``"instance"``: the network, then
            optimisation from there.
        model: a network by name: ``"general"``, ``"hippocampus_labels"``;
            with ``preset`` ``"fast"`` or ``"instance"``, as all that is a network's.
        weights: a file of weights for the model's network.
        initialisation: ``"auto"`` (a search for turn and shift, which leaves the headers' orientation only for a
            better one), ``"search"`` (its best), ``"geometry"`` (centres of the fields of view), ``"moments"`` (centres
            of mass) or ``"header"`` (trust the world coordinates).
        initial_transform: to start from, in place of an initialisation: a file, ``"inverse:FILE"``, a `Transform`, or a
            list of such, fixed to moving points, the first listed, the first to act (ANTs' order).
        transform: ``"rigid"`` (a turn and a shift), ``"similarity"`` (with one scale), ``"affine"``, or
            ``"deformable"`` (an affine and a deformation). An initial transform is kept whole, of whatever kind.
        similarity: what images are compared by: ``"lncc"`` (local correlation, for one contrast), ``"mind"``
            (self-similarity, for any two), ``"nmi"`` (mutual information), ``"ssd"`` (squared differences), or
            ``"auto"`` (``"lncc"`` or ``"mind"``, by the pair).
        label_weight: of the labels' overlap in what is optimised; 0 by default.
        label_names: file of ITK-SNAP's label descriptions, by which the report names labels.
        point_weight: of the landmarks' distances in what is optimised; 0 only measures them.
        point_tolerance: mm within which landmarks are to be carried onto each other.
        space: ``"RAS"`` or ``"LPS"``, of files of points that do not say it, and of arrays (RAS by default).
        affine_steps: steps of the affine network.
        vsvf_steps: deformable steps of the network.
        grid: size of the grid that both images are sampled on.
        grid_voxels: the most voxels that it may have, in place of ``grid``.
        extent: ``"common"`` or ``"own"``, what part of the world the grid spans.
        interpolation: of the moved image, ``"linear"`` or ``"bspline"``.
        label_interpolation: of the moved label, ``"nearest"`` or ``"linear"``.
        device: such as ``"cpu"`` or ``"cuda:0"``.
        threads: CPU threads.
        seed: of everything random.

    Returns:
        The result: ``moved``, ``moved_label``, ``transform`` (carries points fixed → moving and warps images moving →
        fixed), ``inverse``, ``metrics``, ``warnings``, and ``save(folder)``, which writes what the command writes.

    Raises:
        InputError: for an image or option that cannot be used; one line that names it and says what to do.
    """
    given = dict(locals())
    options = {setting.name: given[setting.name] for setting in SETTINGS if setting.name in given}
    if initial_transform is not None:
        options["initial_transform"] = _as_files(initial_transform)
    if channel_weights is not None:
        options["channel_weights"] = np.atleast_1d(channel_weights).tolist()
    values = config_values(options)
    files = {name: given[name] for name in (*FILES, *CHANNELS)}
    check_landmarks(options, files)
    from .registration import Pair, Registrar, Start

    pair = Pair.read(files, space)
    _use(threads)
    if initial_transform is not None:
        values["initial_transform"] = Start.read(initial_transform)
    return Registrar(model, **values)(pair, source=moving)


def series(
    moving: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    fixed: str | os.PathLike | None = None,
    fixed_mask: str | os.PathLike | None = None,
    transform: str | None = None,
    initialisation: str | None = None,
    similarity: str | None = None,
    grid_voxels: int | None = None,
    interpolation: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    seed: int | None = None,
) -> Series:
    """Register every volume of a series: motion correction, as the command ``avsm series``.

    Args:
        moving: a 4-D NIfTI file, or the files of its volumes in order.
        output: folder for the files; a run that was interrupted goes on there.
        fixed: an image to which all are registered; None for their own mean, in the place of the volume in the middle.
        fixed_mask: where the similarity counts, on the grid of the fixed image, or of the volumes.
        transform: ``"rigid"``, ``"similarity"`` or ``"affine"``.
        initialisation: of the first volume onto the fixed image, see `register`.
        similarity: see `register`.
        grid_voxels: see `register`.
        interpolation: of the moved volumes, ``"linear"`` or ``"bspline"``.
        dtype: of the moved volumes, such as ``"float32"``; ``"same"``: the series' own.
        device: such as ``"cpu"`` or ``"cuda:0"``.
        threads: CPU threads.
        seed: of everything random.

    Returns:
        ``transforms`` (fixed points to those of each volume), ``motion`` (columns of ``motion.tsv``), ``metrics`` and
        the ``folder``.

    Raises:
        InputError: for files or options that cannot be used.
    """
    given = dict(locals())
    values = series_values({setting.name: given[setting.name] for setting in SERIES}, fixed is not None)
    from .registration import register_series

    _use(threads)
    return register_series(moving, output, fixed, fixed_mask, **values)


def template(
    images: str | os.PathLike | Sequence[Any],
    output: str | os.PathLike,
    *,
    rounds: int | None = None,
    transform: str | None = None,
    average: str | None = None,
    spacing: float | None = None,
    preset: str | None = None,
    similarity: str | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Build an unbiased average of images in a folder, as the command ``avsm template``; a run cut short goes on there.

    None stands for an option's default, which ``avsm template --help`` shows.

    Args:
        images: files; dictionaries with ``image`` and perhaps ``label`` and ``name``; or a CSV file with such columns.
        output: folder for ``template.nii.gz`` and the rest, see ``avsm template --help``.
        rounds: deformable rounds, after a rigid one.
        transform: the last kind: ``"rigid"``, ``"affine"`` or ``"deformable"``.
        average: of intensities, ``"sharpened"``, ``"mean"`` or ``"median"``.
        spacing: mm of its voxels; None for the images' median.
        preset: see `register`.
        similarity: see `register`.
        device: see `register`.
        threads: CPU threads.

    Returns:
        The content of ``template.json``: ``images``, ``shape``, ``spacing``, and for each of the ``rounds``
        ``mean_displacement_mm`` and ``mean_gradient``.

    Raises:
        InputError: for images or options that cannot be used.
    """
    given = dict(locals())
    return _average(images, output, {setting.name: given[setting.name] for setting in TEMPLATE})


def longitudinal(
    visits: str | os.PathLike | Sequence[Any],
    output: str | os.PathLike,
    *,
    average: str | None = None,
    spacing: float | None = None,
    preset: str | None = None,
    similarity: str | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Compare one person's visits in their unbiased average, as the command ``avsm longitudinal``; see `template`.

    Args:
        visits: in order of time, as ``images`` of `template`.
        output: folder; also gets ``change.nii.gz``, the last visit's volume over the first one's at each voxel.
        average: of intensities, see `template`.
        spacing: see `template`.
        preset: see `register`.
        similarity: see `register`.
        device: see `register`.
        threads: CPU threads.

    Returns:
        As `template`, and ``change``: the change of volume in ``percent`` at percentiles of the voxels that are body.

    Raises:
        InputError: for images or options that cannot be used.
    """
    given = dict(locals())
    return _average(visits, output, {setting.name: given[setting.name] for setting in LONGITUDINAL}, visits=True)


def _average(images: Any, output: str | os.PathLike, settings: dict[str, Any], visits: bool = False) -> dict[str, Any]:
    """The average that `template` or `longitudinal` builds."""
    asked, engine = template_values(settings, visits)
    from .registration import Registrar, Template, round_settings, subjects_of, visit_settings

    subjects = subjects_of(images)
    _use(engine.get("threads"))

    @functools.cache  # over the rounds of a kind
    def registrar(kind: str, shape: tuple[int, ...], last: bool, posed: bool) -> Registrar:
        more = visit_settings(shape, posed) if visits else round_settings(engine.get("preset"), shape, last, posed)
        return Registrar(**config_values({**engine, "transform": kind}), **more)

    return Template(subjects, output, registrar, **asked, visits=visits).build()


def load_transform(*paths: str | os.PathLike) -> Transform:
    """Read transform files as one transform, the first listed, the first to act on a point (ANTs' order).

    Args:
        paths: ``.h5``, ``.hdf5``, ``.tfm``, ``.txt``, ANTs' or Greedy's ``.mat``, or displacement fields (``.nii``,
            ``.nii.gz``, ``.nrrd``, ``.nhdr``, ``.mha``, ``.mhd``).

    Raises:
        InputError: for a file that cannot be read.
    """
    return Transform.read(*paths)


def apply(
    transform: Transform | str | os.PathLike,
    image: Any,
    reference: Any,
    *,
    label: bool = False,
    interpolation: str | None = None,
    default_value: float = 0.0,
) -> Any:
    """Warp an image or label map onto a reference image's grid, with one interpolation.

    Args:
        transform: a `Transform` or a file; a registration's carries points fixed → moving and so warps moving images
            onto the fixed image.
        image: what is warped; see `register` for its kinds.
        reference: an image whose grid the result gets.
        label: whether ``image`` is a label map.
        interpolation: ``"linear"`` or ``"bspline"``; for labels ``"nearest"`` or ``"linear"`` (per label, the largest
            wins).
        default_value: outside the image.

    Returns:
        The warped image, in the kind of ``image``; a nibabel image for a file.

    Raises:
        InputError: for an image or transform that cannot be used.
    """
    volume, grid = noted(read_label(image) if label else read_volume(image)), grid_of(reference)
    array = _transform(transform).warp(volume, grid, label, interpolation, default_value)
    return image_like(image, array, grid)


def jacobian(transform: Transform | str | os.PathLike, reference: Any) -> tuple[Any, dict[str, float]]:
    """The Jacobian determinant of a transform on an image's grid: how much it enlarges each voxel.

    Args:
        transform: a `Transform` or a file.
        reference: an image on whose grid to measure, usually the fixed one.

    Returns:
        The determinant as an image of the reference's kind, and its measures: ``folds`` (voxels at which any of the
        eight corner determinants is negative), ``std_log_jacobian``, ``jacobian_min`` and others.

    Raises:
        InputError: for an image or transform that cannot be used.
    """
    from .metrics import world_jacobian

    grid = grid_of(reference)
    found = world_jacobian(_transform(transform).parts, grid)
    return image_like(reference, found.determinant.astype(np.float32), grid), found.measures


def evaluate(
    *,
    fixed_label: Any = None,
    moved_label: Any = None,
    labels: Sequence[int] | None = None,
    label_names: str | os.PathLike | None = None,
    fixed_points: Any = None,
    moving_points: Any = None,
    space: str | None = None,
    transform: Transform | str | os.PathLike | None = None,
    reference: Any = None,
    fixed: Any = None,
    moved: Any = None,
    mask: Any = None,
) -> dict[str, Any]:
    """Measure a registration; each pair of arguments adds its measures.

    Args:
        fixed_label: label map of the fixed image; with ``moved_label``: Dice, HD95 and ASSD (mm) of every label.
        moved_label: the moving label map on the fixed image's grid.
        labels: the label values to measure; None for all that occur but 0.
        label_names: file of ITK-SNAP's label descriptions; adds ``label_names``, those of the labels measured.
        fixed_points: landmarks in mm, ``(N, 3)`` or a file; with ``moving_points``: target registration error.
        moving_points: the same landmarks in the moving image, in the same order.
        space: of the points, ``"RAS"`` or ``"LPS"``, where the file does not say it.
        transform: fixed to moving.
        reference: with ``transform``: its folds and Jacobian on this image's grid.
        fixed: the fixed image; with ``moved``: normalised cross correlation.
        moved: the moving image on the fixed image's grid.
        mask: where to correlate, on the fixed image's grid.

    Returns:
        ``labels`` and ``mean``, ``tre_before`` and ``tre``, ``jacobian``, ``ncc``; what was asked for.

    Raises:
        InputError: for what cannot be read, does not fit together, or is one of two that belong together.
    """
    check_measured(dict(locals()))
    result: dict[str, Any] = {}
    chain = Transform([]) if transform is None else _transform(transform)
    if fixed_label is not None:
        result.update(_evaluate_labels(fixed_label, moved_label, labels))
        if label_names is not None:
            result["label_names"] = names_of(result["labels"], read_label_names(label_names))
    if fixed_points is not None:
        result.update(_evaluate_points(fixed_points, moving_points, space, chain))
    if reference is not None:
        from .metrics import world_jacobian

        with chain.named(reference if isinstance(reference, str | os.PathLike) else None):
            result["jacobian"] = world_jacobian(chain.parts, grid_of(reference)).measures
    if fixed is not None:
        result["ncc"] = _evaluate_images(fixed, moved, mask)
    return result


def noted(image: Image) -> Image:
    """The image, after a warning for every oddity of its header."""
    for note in image.notes:
        warnings.warn(f"{image.path}: {note}", stacklevel=3)
    return image


def _use(threads: int | None) -> None:
    """Let PyTorch work by so many threads; None leaves them."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _as_files(given: Any) -> list[Any]:
    """Transforms as files, those in memory by a name, as settings are checked."""
    several = list(given) if isinstance(given, list | tuple) else [given]
    return ["transform" if isinstance(one, Transform) else one for one in several]


def _transform(transform: Transform | str | os.PathLike) -> Transform:
    return transform if isinstance(transform, Transform) else Transform.read(transform)


def grid_of(reference: Any) -> Frame:
    """The grid of a reference image, which may be constant; a grid as it is."""
    return reference if isinstance(reference, Frame) else noted(read_volume(reference)).frame


def _evaluate_labels(fixed_label: Any, moved_label: Any, labels: Sequence[int] | None) -> dict[str, Any]:
    from .metrics import label_metrics, mean_metrics

    fixed = noted(read_label(fixed_label))
    moved = noted(read_label(moved_label, fixed))
    if labels is not None and not np.isin(labels, np.union1d(fixed.array, moved.array)).any():
        raise InputError(f"labels: none of {list(labels)} is in either label map; give values that are")
    measures = label_metrics(moved.array, fixed.array, fixed.frame.spacing, labels)
    return {"labels": {str(label): values for label, values in measures.items()}, "mean": mean_metrics(measures)}


def _evaluate_points(fixed: Any, moving: Any, space: str | None, chain: Transform) -> dict[str, Any]:
    from .metrics import target_registration_error

    files = [one if isinstance(one, str | os.PathLike) else "points" for one in (fixed, moving)]
    landmarks = [points_from(one, space) for one in (fixed, moving)]
    try:
        result = {"tre_before": target_registration_error(*landmarks)}
        if chain.parts:
            with chain.named(files[0]):
                result["tre"] = target_registration_error(*landmarks, chain.parts)
    except InputError as error:
        raise InputError(f"{files[0]}, {files[1]}: {error}") from error
    return result


def _evaluate_images(fixed: Any, moved: Any, mask: Any) -> float:
    from .formats.images import GRID_TOLERANCE

    fixed, moved = noted(read_image(fixed)), noted(read_image(moved))
    if not moved.frame.same_as(fixed.frame, GRID_TOLERANCE * fixed.frame.spacing.min()):
        raise InputError(
            f"{moved.path}: is not on the grid of {fixed.path} (of {moved.frame.shape} and {fixed.frame.shape} voxels, "
            "perhaps elsewhere in the world); resample it with avsm apply"
        )
    arrays = [fixed.array, moved.array]
    if mask is not None:
        inside = noted(read_mask(mask, fixed)).array
        arrays = [array[inside] for array in arrays]
    with np.errstate(divide="ignore", invalid="ignore"):  # an image that is constant within the mask
        return float(np.corrcoef(*(array.ravel() for array in arrays))[0, 1])
