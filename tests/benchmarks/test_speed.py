"""The speed benchmark: it runs, its comparison can fail, and the reference means the same as ours where it should."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import speed
import speed_tables
from reference import (
    ReferenceAffineNet,
    ReferenceAVSM,
    ReferenceMomentumNet,
    affine_training_step,
    dense_correlation,
    identity_grid,
    integrate_rk4,
    upsample_map,
    vsvf_training_step,
    warp_image,
)
from speed_cases import Setting
from speed_names import CASES, PIECES, WHOLE

from scripts.geometry import identity_map, resize_map, warp
from scripts.layers import VSVF, advect
from tensor_cases import local_correlation

TINY = (20, 24, 16)


def smooth(shape, channels=3, seed=0, size=0.05):
    """A smooth random field ``(1, channels, *shape)``, zero at the faces."""
    coarse = torch.randn(1, channels, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
    field = size * torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)
    for axis, n in enumerate(shape):
        window = torch.sin(torch.linspace(0, torch.pi, n)).view([-1 if a == axis else 1 for a in range(3)])
        field = field * window
    return field


def test_counts_of_parameters():
    assert sum(p.numel() for p in ReferenceAffineNet((192, 192, 80)).parameters()) == 147_920
    assert sum(p.numel() for p in ReferenceMomentumNet().parameters()) == pytest.approx(5_938_515, rel=1e-4)


@pytest.mark.parametrize("window, stride, dilation", [(5, 1, 1), (4, 3, 1), (5, 1, 2), (8, 2, 2)])
def test_dense_correlation_is_ours(window, stride, dilation):
    # Sizes of which the stride leaves nothing over, so that windows lie at the same places.
    shape = [(window - 1) * dilation + 1 + stride * n for n in (3, 5, 4)]
    x, y = smooth(shape, 1, 1, 1.0) + 0.5, smooth(shape, 1, 2, 1.0) + 0.5
    expected = local_correlation(x, y, window, stride, dilation)
    torch.testing.assert_close(dense_correlation(x, y, window, stride, dilation), expected, atol=1e-4, rtol=1e-4)


def test_rk4_is_ours():
    velocity = smooth(TINY)
    expected = identity_map(list(TINY)) + advect(torch.zeros_like(velocity), velocity, 10)
    torch.testing.assert_close(integrate_rk4(identity_grid(TINY), velocity), expected, atol=2e-6, rtol=0)
    squared = identity_map(list(TINY)) + VSVF().advance(None, velocity)
    torch.testing.assert_close(integrate_rk4(identity_grid(TINY), velocity), squared, atol=1e-2, rtol=0)


def test_maps_and_warps_are_ours():
    low = [(n + 1) // 2 for n in TINY]
    coordinates = identity_map(low) + smooth(low)
    full = resize_map(coordinates, list(TINY))
    torch.testing.assert_close(upsample_map(coordinates, TINY), full)
    image = torch.rand(1, 1, *TINY)
    torch.testing.assert_close(warp_image(image, full), warp(image, full), atol=1e-5, rtol=1e-5)


def test_training_steps_reach_all_parameters():
    net, (first, second) = ReferenceAVSM(TINY), torch.rand(2, 1, 1, *TINY)
    assert affine_training_step(net, first, second, 2) > 0
    assert all(p.grad.abs().sum() > 0 for p in net.affine_net.head.parameters())
    assert vsvf_training_step(net, first, second, 1, 2) > 0
    assert all(p.grad is not None for p in net.momentum_net.parameters())
    assert all(p.grad is None for p in net.affine_net.parameters())


@pytest.mark.parametrize("case", CASES)
def test_every_case_runs_on_both_sides(case):
    import speed_ours
    import speed_reference

    setting = Setting(TINY, torch.device("cpu"))
    speed_ours.build(case, setting)()
    other = speed_reference.build(case, setting)
    assert (other is None) == (case not in (*PIECES, *WHOLE))
    if other is not None:
        other()


def row(case="inference 7+2", ratio=5.0, **changes):
    return {
        **{"case": case, "size": "20x24x16", "threads": 1, "device": "cpu", "dtype": "float32", "network": "fast"},
        **{"batch": 1, "seconds": 1.0, "reference_seconds": ratio, "ratio": ratio, "peak_gb": 0.5, "growth_gb": 0.1},
        **{"reference_peak_gb": 0.6, "reference_growth_gb": 0.2},
        **changes,
    }


@pytest.mark.parametrize(
    "ratio, changes, found",
    [(5.0, {}, 0), (3.6, {}, 0), (3.4, {}, 1), (3.4, {"size": "8x8x8"}, 0), (3.4, {"threads": 2}, 0), (None, {}, 0)],
)
def test_regressions(ratio, changes, found):
    lines = speed_tables.regressions([row(ratio=ratio, **changes)], [row()], 0.3)
    assert len(lines) == found and all("inference 7+2" in line and "5.00" in line for line in lines)


def test_command_measures_and_fails_on_a_regression(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "speed.py"), "--sizes", "20x24x16", "--cases", "warp"]
    command += ["--repeats", "1", "--output", str(tmp_path / "first")]
    assert subprocess.run(command, capture_output=True).returncode == 0
    bench = json.loads((tmp_path / "first" / "bench.json").read_text())
    (found,) = bench["rows"]
    assert (found["case"], found["size"], found["threads"], found["device"]) == ("warp", "20x24x16", 1, "cpu")
    assert found["ratio"] == pytest.approx(found["reference_seconds"] / found["seconds"])
    assert 0.05 < found["peak_gb"] < 8 and 0 < found["growth_gb"] < found["peak_gb"]
    assert "| warp | 20x24x16 |" in (tmp_path / "first" / "bench.md").read_text()


def test_check_exits_with_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "run", lambda options: [row()])
    stored = tmp_path / "baseline.json"
    for ratio, status in ((5.0, 0), (20.0, 1)):
        stored.write_text(json.dumps({"rows": [row(ratio=ratio)]}))
        assert speed.main(["--output", str(tmp_path), "--check", str(stored)]) == status
    assert "regression" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="not found"):
        speed.main(["--check", str(tmp_path / "absent.json")])
