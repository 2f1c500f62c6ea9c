"""How a network is asked to register: an inferer, as MONAI's engines call it, with the numbers of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from . import Registration


class RegistrationInferer:
    """Registers a two-channel input with an `AVSM`.

    Args:
        affine_steps: affine steps; None for the network's own number.
        vsvf_steps: vSVF steps; None for the network's own number.
        amp: run the momentum network's convolutions in bfloat16; all else stays in float32.
    """

    def __init__(self, affine_steps: int | None = None, vsvf_steps: int | None = None, amp: bool = False) -> None:
        self.affine_steps = affine_steps
        self.vsvf_steps = vsvf_steps
        self.amp = amp

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Registration:
        """The `Registration` of ``(B, 2, D, H, W)``, channels [moving, fixed], by an `AVSM` or its `data_parallel`.

        ``kwargs`` override ``affine_steps`` or ``vsvf_steps`` for this call.
        """
        options = {"affine_steps": self.affine_steps, "vsvf_steps": self.vsvf_steps}
        options.update(kwargs)
        # The wrapper averages gradients only after its own forward, which is `register` here.
        register = network if isinstance(network, DistributedDataParallel) else network.register
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.amp):
            return register(inputs[:, :1], inputs[:, 1:2], **options)
