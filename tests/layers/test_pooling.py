"""AdaptiveMean: the library's pooling, and its form for exporters."""

import pytest
import torch

from scripts.layers import AdaptiveMean


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(3, 4, 3), (6, 9, 5), (1, 2, 7), (24, 32, 24)])
def test_slices_are_the_librarys_cells(size, shape):
    features = torch.rand(2, 5, *shape, generator=torch.Generator().manual_seed(0))
    pool, reference = AdaptiveMean(size), torch.nn.AdaptiveAvgPool3d(size)(features)
    assert pool(features).equal(reference)
    torch.testing.assert_close(pool.by_slices(features), reference, rtol=1e-5, atol=1e-6)
    assert torch.jit.script(pool)(features).equal(reference)


def test_export_has_slices_in_its_place():
    features = torch.rand(1, 2, 6, 7, 8)
    program = torch.export.export(AdaptiveMean(3), (features,))
    names = [str(node.target) for node in program.graph.nodes]
    assert not any("adaptive" in name for name in names) and any("mean" in name for name in names)
    torch.testing.assert_close(program.module()(features), AdaptiveMean(3)(features))


def test_bad_size():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        AdaptiveMean(0)
