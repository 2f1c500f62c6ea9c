"""The page of one pair shows what it says, in proportion, and nothing overlaps."""

from __future__ import annotations

import io
from itertools import combinations

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.text import Text

from scripts.geometry import affine_map, identity_map
from scripts.report import figure_array, pair_figure, save_figure

SHAPE = (20, 30, 24)


def images(shape=SHAPE):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, *shape, generator=generator) for _ in range(3)]


def label(shape=SHAPE, low=0.3, high=0.6):
    result = torch.zeros(1, *shape)
    result[:, *[slice(int(low * n), max(int(high * n), int(low * n) + 1)) for n in shape]] = 2
    return result


def example(shape=SHAPE, phi=None, **more):
    return pair_figure(*images(shape), identity_map(shape) if phi is None else phi, **more)


def panels(figure):
    """The axes of three rows by six columns; the colour bar comes last."""
    assert len(figure.axes) == 19
    return np.array(figure.axes[:18], dtype=object).reshape(3, 6)


def contours(axes):
    return [c for c in axes.collections if isinstance(c, ContourSet)]


def test_panels_hold_the_slices_and_share_ranges():
    fixed, moving, moved = images()
    rows = panels(example())
    for axis in range(3):
        shown = [axes.images[0] for axes in rows[axis]]
        expected = [moving, fixed, moved, moved, moving - fixed, moved - fixed]
        for image, volume in zip(shown, expected, strict=True):
            cut = np.take(volume[0].numpy(), SHAPE[axis] // 2, axis=axis)
            np.testing.assert_allclose(image.get_array(), cut, atol=1e-6)
    assert len({axes.images[0].get_clim() for axes in rows[:, :3].flat}) == 1
    (reach,) = {axes.images[0].get_clim() for axes in rows[:, 4:].flat}
    assert reach[0] == -reach[1] < -0.5


def test_constant_and_equal_images_have_a_range():
    flat = torch.full((1, *SHAPE), 3.0)
    rows = panels(pair_figure(flat, flat, flat, identity_map(SHAPE)))
    for axes in rows.flat:
        low, high = axes.images[0].get_clim()
        assert low < high


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [(SHAPE, (1, 1, 1)), (SHAPE, (0.7, 0.36, 2)), ((8, 60, 60), (5, 1, 1)), ((60, 8, 10), (1, 1, 1))],
)
@pytest.mark.parametrize("orientation", [None, "RAS", "PIR"])
def test_panels_are_in_proportion_and_texts_stay_apart(shape, spacing, orientation):
    figure = example(
        shape, spacing=spacing, orientation=orientation, title="case a to case b", fixed_label=label(shape)
    )
    figure_array(figure)
    rows = panels(figure)
    pixels_per_mm = []
    for axes in rows.flat:
        box = axes.get_window_extent()
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        pixels_per_mm += [box.width / (right - left), box.height / (bottom - top)]
    np.testing.assert_allclose(pixels_per_mm, pixels_per_mm[0], rtol=1e-3)

    texts = [t.get_window_extent() for t in figure.findobj(Text) if t.get_text() and t.get_visible() and t.axes is None]
    assert len(texts) >= 1 + 6 * 2 + 3 + 2  # title, columns, rows, legend
    for box in texts:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
        assert not any(box.overlaps(axes.get_window_extent()) for axes in rows.flat)
    assert not any(a.overlaps(b) for a, b in combinations(texts, 2))
    boxes = [axes.get_window_extent() for axes in figure.axes]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


@pytest.mark.parametrize(
    ("spacing", "step", "legend"),
    [(None, 1, "every 1 voxels"), ((1.0, 1.0, 1.0), 1, "every 1 mm"), ((3.0, 0.5, 1.5), 2.5, "every 2.5 mm")],
)
def test_grid_lines_are_level_lines_of_the_map(spacing, step, legend):
    """With map(x) = 0.8 x + shift, the line of the moving coordinate c lies where 0.8 x + shift = c."""
    shift, scale = 3.0, 0.8  # voxels
    rows = torch.zeros(1, 3, 4)
    for axis, n in enumerate(SHAPE):
        # Normalised: 2 (scale v + shift) / (n - 1) - 1 with v = (x + 1) (n - 1) / 2.
        rows[0, axis, axis], rows[0, axis, 3] = scale, 2 * shift / (n - 1) + scale - 1
    figure = example(phi=affine_map(rows, list(SHAPE)), spacing=spacing)
    assert legend in all_text(figure)
    spacing = spacing or (1, 1, 1)
    for normal, axes in enumerate(panels(figure)[:, 3]):
        in_plane = [a for a in range(3) if a != normal]
        lines = contours(axes)
        assert len(lines) == 2
        for contour, axis, coordinate in zip(lines, in_plane, (1, 0), strict=True):
            first, last = shift * spacing[axis], (scale * (SHAPE[axis] - 1) + shift) * spacing[axis]
            np.testing.assert_allclose(contour.levels, np.arange(np.ceil(first / step), np.ceil(last / step)) * step)
            for level, path in zip(contour.levels, contour.get_paths(), strict=True):
                voxel = (level / spacing[axis] - shift) / scale
                np.testing.assert_allclose(path.vertices[:, coordinate], (voxel + 0.5) * spacing[axis], atol=1e-3)


def test_wild_map_is_drawn_with_few_lines():
    figure = example(phi=identity_map(SHAPE) * 1e5)
    assert all(len(c.levels) < 100 for axes in panels(figure)[:, 3] for c in contours(axes))


def test_folds_are_counted_and_shown():
    phi = identity_map(SHAPE).clone()
    assert "0 folded voxels" in all_text(example(phi=phi))
    phi[:, 0, 9, 15, 12], phi[:, 0, 10, 15, 12] = phi[0, 0, 10, 15, 12].item(), phi[0, 0, 9, 15, 12].item()
    figure = example(phi=phi)
    assert "0 folded voxels" not in all_text(figure)
    middle = panels(figure)[1, 3]
    assert len(middle.images) == 2 and (~middle.images[1].get_array().mask).sum() >= 2


def all_text(figure):
    return " ".join(t.get_text() for t in figure.findobj(Text))


@pytest.mark.parametrize(
    ("fixed", "moved", "counts"),
    [(False, False, (0, 0, 0)), (True, False, (1, 1, 1)), (False, True, (0, 0, 1)), (True, True, (1, 1, 2))],
)
def test_outlines(fixed, moved, counts):
    figure = example(fixed_label=label() if fixed else None, moved_label=label() if moved else None)
    for row in panels(figure):
        assert tuple(len(contours(axes)) for axes in row[:3]) == counts
    assert ("outline of the fixed label" in all_text(figure)) is fixed
    assert ("outline of the moved label" in all_text(figure)) is moved


def test_outline_surrounds_the_label():
    figure = example(fixed_label=label(), spacing=(1, 2, 3))
    (outline,) = contours(panels(figure)[0, 1])  # across axis 0: H down the page, W across
    low, high = outline.get_paths()[0].vertices.min(axis=0), outline.get_paths()[0].vertices.max(axis=0)
    np.testing.assert_allclose([low, high], [[7 * 3, 9 * 2], [14 * 3, 18 * 2]])


def test_accepts_arrays_batches_and_tensors_with_gradient():
    fixed, moving, moved = images()
    phi = identity_map(SHAPE)
    plain = figure_array(pair_figure(fixed, moving, moved, phi))
    batched = pair_figure(fixed[None], moving[0].numpy(), moved.double().requires_grad_(), phi[0].numpy())
    np.testing.assert_array_equal(figure_array(batched), plain)


def test_array_and_file_agree(tmp_path):
    figure = example()
    assert isinstance(figure, Figure) and plt.get_fignums() == []
    array = figure_array(figure)
    assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.std() > 10
    save_figure(figure, tmp_path / "pair.png")
    from_file = matplotlib.image.imread(tmp_path / "pair.png")[..., :3]
    assert np.abs(from_file * 255 - array).max() <= 1
    assert [p.name for p in tmp_path.iterdir()] == ["pair.png"]


@pytest.mark.parametrize("name", ["pair.unknown", "pair.png"])
def test_failed_save_leaves_nothing(tmp_path, monkeypatch, name):
    def interrupted(self, stream, **_):
        stream = open(stream, "wb") if not isinstance(stream, io.IOBase) else stream  # noqa: SIM115
        stream.write(b"half")
        stream.flush()
        raise OSError("No space left on device")

    monkeypatch.setattr("matplotlib.backends.backend_agg.FigureCanvasAgg.print_png", interrupted)
    with pytest.raises((OSError, ValueError), match=r"No space left|not supported"):
        save_figure(example(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fixed", torch.zeros(2, *SHAPE), "fixed: need one volume"),
        ("moving", torch.zeros(1, 20, 30, 25), "moving: has the grid"),
        ("moved", torch.full((1, *SHAPE), torch.nan), "moved: holds NaN"),
        ("map", identity_map(SHAPE)[:, :2], "map: need one map"),
        ("map", identity_map([4, 4, 4]), "map: has the grid"),
        ("fixed_label", torch.zeros(1, 4, 4, 4), "fixed_label: has the grid"),
        ("spacing", (1, 1), "spacing: need three"),
        ("orientation", "ABC", "orientation: need three"),
    ],
)
def test_refusals(name, value, message):
    arguments = dict(zip(("fixed", "moving", "moved"), images(), strict=True), map=identity_map(SHAPE))
    with pytest.raises(ValueError, match=message):
        pair_figure(**(arguments | {name: value}))
