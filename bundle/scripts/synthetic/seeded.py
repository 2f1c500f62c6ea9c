"""Random MONAI transforms as a function of a seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def apply_seeded(transform: Callable, item: dict, key: tuple[int, ...]) -> dict:
    """Apply a transform that may be random, so that its result depends on the item and the key alone.

    Args:
        transform: MONAI transform of a dict.
        item: its argument.
        key: non-negative whole numbers, here (seed, epoch, index).

    Returns:
        What the transform returns.
    """
    if hasattr(transform, "set_random_state"):
        transform.set_random_state(seed=int(np.random.SeedSequence(key).generate_state(1)[0]))
    return transform(item)
