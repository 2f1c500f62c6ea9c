"""Gradient checkpointing: the backward pass repeats work instead of keeping its intermediate results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .allocator import hand_back

LARGE_IMAGE = 2**20


def uses_checkpointing(image: Tensor, wanted: Optional[bool] = None) -> bool:
    """Whether work on images ``(B, 1, D, H, W)`` shall be repeated in the backward pass; never without one.

    ``wanted`` is what the user asked for; None decides for large images (`LARGE_IMAGE` and more) on the CPU, where
    memory rather than time ends a training.
    """
    if not torch.is_grad_enabled():
        return False
    return (image.device.type == "cpu" and image[0].numel() >= LARGE_IMAGE) if wanted is None else wanted


def checkpointed(enabled: bool, function: Callable, *arguments: Any) -> Any:
    """``function(*arguments)``, repeated in the backward pass if enabled; the values and gradients are the same."""
    if not enabled:
        return function(*arguments)
    hand_back()
    return checkpoint(function, *arguments, use_reentrant=False)
