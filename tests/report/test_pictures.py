"""The pictures show what they say, and the figures hold them in proportion."""

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.contour import ContourSet
from matplotlib.text import Text

from report_cases import KINDS, ODD, SHAPE, SPACING, block, example, labelled
from scripts.geometry import affine_map, identity_map
from scripts.report import make_pictures, pair_figure, report_figure


def figure_array(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def panel(data, key):
    return {panel.key: panel for panel in make_pictures(data).panels}[key]


def test_checkerboard_takes_turns():
    rim, flat = np.pad(np.ones((38,) * 3), 1), np.zeros((40,) * 3)
    board = panel(example(flat.shape, fixed=rim, moving=rim, moved=flat, spacing=(1, 1, 2)), "checkerboard")
    assert "squares of 8 mm" in board.note
    across = np.floor((np.arange(40) + 0.5) / 8)
    odd = (across[:, None] + across) % 2 > 0  # axial: 40 mm x 40 mm
    np.testing.assert_array_equal(board.images[0][1:-1, 1:-1] == 0, odd[1:-1, 1:-1])


@pytest.mark.parametrize("mask", [None, block() > 0])
def test_differences_share_one_scale_and_tell_their_mean(mask):
    data = example(mask=mask)
    before, after = (panel(data, f"difference_{when}") for when in ("before", "after"))
    assert before.limits == after.limits and before.limits[0] == -before.limits[1] < 0
    inside = np.ones(SHAPE, bool) if mask is None else mask
    windows = {name: np.percentile(getattr(data, name), (0.5, 99.5)) for name in ("fixed", "moving")}
    scaled = {
        name: (getattr(data, name) - windows[w][0]) / np.diff(windows[w])
        for name, w in (("fixed", "fixed"), ("moving", "moving"), ("moved", "moving"))
    }
    for shown, name in ((before, "moving"), (after, "moved")):
        assert f"{np.abs(scaled[name] - scaled['fixed'])[inside].mean():.3g}" in shown.note
        assert ("in mask" in shown.note) is (mask is not None)


def test_large_planes_are_reduced_and_keep_single_folds():
    determinant = np.ones((1100, 3, 20), np.float32)
    determinant[777, 1, 11] = -1
    volume = np.linspace(0, 1, 1100, dtype=np.float32)[:, None, None] * np.ones((1, 3, 20), np.float32)
    data = example(determinant.shape, fixed=volume, jacobian=determinant)
    coronal = panel(data, "fixed").images[1]
    assert coronal.shape == (20, 512)
    low, high = np.percentile(volume, (0.5, 99.5))
    np.testing.assert_allclose(coronal.mean(), (0.5 - low) / (high - low), atol=2e-3)
    assert panel(data, "grid").folds[1].sum() == panel(data, "jacobian").folds[1].sum() == 1


def full_report(**more):
    data = labelled(**more)
    return report_figure(data, make_pictures(data))


def pair(shape=SHAPE, phi=None, spacing=SPACING, **more):
    names = enumerate(("fixed", "moving", "moved"))
    volumes = {name: torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed)) for seed, name in names}
    more |= {
        name: torch.from_numpy(more[name]) for name in ("fixed_label", "moved_label") if more.get(name) is not None
    }
    phi = identity_map(shape) if phi is None else phi
    return pair_figure(phi, spacing, **({"orientation": "RAS"} | volumes | more))


def rows(figure):
    """The axes of the panels, by row and column; colour bars come last."""
    axes = [axes for axes in figure.axes if axes.images]
    return np.array(axes, dtype=object).reshape(3, -1)


def words(figure):
    return " ".join(text.get_text() for text in figure.findobj(Text))


@pytest.mark.parametrize("case", [
    lambda: full_report(warnings=["look"]),
    lambda: full_report(name="n" * 400, warnings=["w " * 300] * 9),
    lambda: full_report(shape=(64, 64, 3), spacing=(0.4, 0.4, 6.0), metrics={}),
    lambda: full_report(shape=(4, 4, 300), orientation="PIR"),
    lambda: pair(title="case a to case b  $1^2$", fixed_label=block(), moved_label=block()),
    lambda: pair((8, 60, 60), spacing=(5, 1, 1), orientation="PIR"),
])  # fmt: skip
def test_panels_are_in_proportion(case):
    figure = case()
    figure_array(figure)
    panels = rows(figure)
    bars = [axes for axes in figure.axes if not axes.images]
    assert (panels.shape[1], len(bars)) in ((len(KINDS), 2), (6, 1))
    scales = []
    for axes in panels.flat:
        box = axes.get_window_extent()
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        scales += [box.width / (right - left), box.height / (bottom - top)]
    np.testing.assert_allclose(scales, scales[0], rtol=1e-3)


@pytest.mark.parametrize("case", ["no metrics", "constant", "all folded", "wild map", "tiny"])
def test_figure_survives(case):
    data = ODD[case]()
    assert figure_array(report_figure(data, make_pictures(data))).std() > 5


def test_pair_shows_the_slices():
    figure = pair()
    volumes = [torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(seed))[0].numpy() for seed in range(3)]
    fixed, moving, moved = volumes
    axial = rows(figure)[0]
    for axes, volume, window in zip(axial, (moving, fixed, moved), (moving, fixed, moving), strict=False):
        low, high = np.percentile(window, (0.5, 99.5))
        expected = (volume[::-1, ::-1, SHAPE[2] // 2].T - low) / (high - low)  # right at the left, front at the top
        np.testing.assert_allclose(axes.images[0].get_array(), expected, atol=1e-5)
        assert axes.images[0].get_clim() == (0, 1)
    reaches = {axes.images[0].get_clim() for axes in rows(figure)[:, 4:].flat}
    assert len(reaches) == 1


def contours(axes):
    return [c for c in axes.collections if isinstance(c, ContourSet)]


def test_pair_draws_level_lines_of_the_map():
    """With map(v) = 0.8 v + shift, the line of the moving coordinate c lies where 0.8 v + shift = c / spacing."""
    shift, scale, step, shape, spacing = 3.0, 0.8, 2.5, (20, 30, 24), (3.0, 0.5, 1.5)
    affine = torch.zeros(1, 3, 4)
    for axis, n in enumerate(shape):
        # Normalised: 2 (scale v + shift) / (n - 1) - 1 with v = (x + 1) (n - 1) / 2.
        affine[0, axis, axis], affine[0, axis, 3] = scale, 2 * shift / (n - 1) + scale - 1
    figure = pair(shape, affine_map(affine, list(shape)), spacing)
    assert "a line every 2.5 mm" in words(figure)
    # In radiological layout every page axis runs against its array axis.
    for (vertical, horizontal), axes in zip(((1, 0), (2, 0), (2, 1)), rows(figure)[:, 3], strict=True):
        for contour, axis, coordinate in zip(contours(axes), (vertical, horizontal), (1, 0), strict=True):
            first, last = shift * spacing[axis], (scale * (shape[axis] - 1) + shift) * spacing[axis]
            levels = np.arange(np.floor(first / step) + 1, np.ceil(last / step)) * step
            np.testing.assert_allclose(contour.levels, levels)
            for level, path in zip(levels, contour.get_paths(), strict=True):
                place = (shape[axis] - (level / spacing[axis] - shift) / scale - 0.5) * spacing[axis]
                np.testing.assert_allclose(path.vertices[:, coordinate], place, atol=1e-3)
