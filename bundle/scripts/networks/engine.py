"""A compiled engine (TensorRT) in place of the momentum network, which takes most of a registration's time."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from .avsm import AVSM
from .weights import check_archive

_EXPORT = "export it by trt_export (docs/export.md)"


class MomentumFace(nn.Module):
    """The part of an `AVSM` that is compiled: its momentum network.

    Warps and compositions stay outside, as TensorRT cannot sample volumes. The state dict is that of the `AVSM`, so
    MONAI's export tools load the same weights file.
    """

    def __init__(self, network: AVSM) -> None:
        super().__init__()
        for name, module in network.named_children():
            self.add_module(name, module)

    def forward(self, image: Tensor) -> Tensor:
        """Momentum of one step, see `MomentumNet`, of ``(B, 2, D, H, W)``, channels [moved so far, fixed]."""
        return self.momentum_net(image[:, :1], image[:, 1:])


class EngineMomentumNet(nn.Module):
    """A loaded engine, called as a `MomentumNet` is.

    The first call compares it with the network that it replaces, since an engine of other weights, or one that lost too
    much precision, would give a wrong registration without an error.

    Args:
        engine: takes ``(1, 2, D, H, W)`` of the grid that it was compiled for.
        reference: the momentum network with the weights that are registered with.
        path: the engine's file, for messages.
        tolerance: largest difference from the reference, as a part of its largest momentum.
    """

    def __init__(self, engine: Callable[[Tensor], Tensor], reference: nn.Module, path: Path, tolerance: float) -> None:
        super().__init__()
        self.engine = engine
        self.reference = reference
        self.compared = False
        self.path = path
        self.tolerance = tolerance

    def forward(self, moved: Tensor, fixed: Tensor, factor: int = 1) -> Tensor:
        """Momentum of one step; as `MomentumNet`, which does the cheap steps on coarser grids itself.

        InputError when the engine does not take the grid, or was compiled from other weights.
        """
        if factor > 1:
            return self.reference(moved, fixed, factor)
        image = torch.cat([moved, fixed], dim=1)
        try:
            momentum = self.engine(image).float()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise InputError(
                f"{self.path}: the engine does not take a grid of {list(image.shape[2:])} "
                f"({str(error).strip().splitlines()[-1]}); set grid to that of the export, or {_EXPORT}"
            ) from error
        if not self.compared:
            with torch.no_grad():
                expected = self.reference(moved, fixed)
            scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
            difference = ((momentum - expected).abs().max() / scale).item() if momentum.shape == expected.shape else 1.0
            if not difference <= self.tolerance:
                raise InputError(
                    f"{self.path}: the engine's momentum differs from that of the weights by {difference:.2g} of its "
                    f"largest value (allowed: {self.tolerance:g}); {_EXPORT} with the weights of ckpt_path"
                )
            self.compared = True
        return momentum


def with_momentum_engine(
    network: AVSM, path: str | os.PathLike, device: torch.device | str = "cpu", tolerance: float = 0.02
) -> AVSM:
    """A network, with its weights, whose momentum network is replaced by an engine, in place.

    ``path`` is what MONAI's ``trt_export`` wrote for `MomentumFace`: a TorchScript file, else InputError. Half
    precision stays far below the ``tolerance``, see `EngineMomentumNet`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: engine not found; {_EXPORT}")
    try:
        check_archive(path)
        engine = torch.jit.load(str(path), map_location=device)
    except (RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a TorchScript file ({str(error).splitlines()[0]}); {_EXPORT}") from error
    network.momentum_net = EngineMomentumNet(engine.eval(), network.momentum_net, path, tolerance)
    return network
