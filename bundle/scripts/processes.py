"""Several processes as one run: which device each takes, how they find each other, what they tell each other.

``torchrun`` starts the processes and tells each its number by environment variables. A training or an evaluation joins
them into one process group (`join_processes`); the registration of a list of pairs needs no group, only the numbers
(`launched`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, Sampler

from .errors import InputError

# Between two words of one process to another lies at most an epoch's validation, or the reading of all images.
PATIENCE = timedelta(hours=2)
# A gloo group that is freed waits for its threads while it holds Python's lock; a thread that is just freeing a tensor
# waits for that lock, and the process never ends. So groups are kept until the process ends.
_left: list[Any] = []


def launched() -> tuple[int, int]:
    """Number of this process and how many there are, as the launcher says; ``(0, 1)`` without one.

    InputError when the launcher's variables are no such numbers.
    """
    texts = [os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")]
    if not all(text.isdigit() for text in texts) or not int(texts[0]) < int(texts[1]):
        raise InputError(
            f"RANK={texts[0]}, WORLD_SIZE={texts[1]}: not the number of a process and of all processes; start by "
            "torchrun, or set RANK from 0 to WORLD_SIZE - 1"
        )
    return int(texts[0]), int(texts[1])


def own_device() -> torch.device:
    """The GPU of this process: that of its number on its machine (``LOCAL_RANK``); the CPU where there is none.

    Where a scheduler shows a process only some of a machine's GPUs, the number is taken among those.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = os.environ.get("LOCAL_RANK", "0")
    return torch.device("cuda", (int(local) if local.isdigit() else 0) % torch.cuda.device_count())


def joined() -> bool:
    """Whether this process belongs to a process group."""
    return distributed.is_available() and distributed.is_initialized()


def process_rank() -> int:
    """Number of this process in the group; 0 without one."""
    return distributed.get_rank() if joined() else 0


def process_count() -> int:
    """Number of processes of the group; 1 without one."""
    return distributed.get_world_size() if joined() else 1


def is_first() -> bool:
    """Whether this is the process that writes common files and shows progress, in a group or of a launcher's."""
    return (process_rank() if joined() else launched()[0]) == 0


def is_another() -> bool:
    """Whether this is a process other than the first, for configs."""
    return not is_first()


def join_processes(device: torch.device | str) -> None:
    """Join the processes that ``torchrun`` started into one group: NCCL for GPUs, gloo for CPUs.

    InputError when it was not started by ``torchrun``, or a machine runs more processes than it has GPUs.
    """
    device = torch.device(device)
    if joined():
        return
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InputError(
            f"{missing[0]} is not set, so this is no process of several; start by torchrun (docs/many_gpus.md), or "
            "leave the multi-GPU config away"
        )
    launched()
    if device.type == "cuda":
        beside, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if beside > gpus:
            raise InputError(
                f"{beside} processes on a machine with {gpus} GPUs; start torchrun --nproc_per_node {gpus}"
            )
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    if not is_first():
        # What every process would say, the first one says.
        logging.getLogger(__package__).setLevel(logging.WARNING)


def leave_processes() -> None:
    """Leave the group, when all processes are done."""
    if joined():
        # The first process writes the last files while the others are done; none may go before all are.
        distributed.barrier()
        _left.append(distributed.group.WORLD)
        distributed.destroy_process_group()


class RegisterWrapper(nn.Module):
    """The ``register`` of an `AVSM` as a ``forward``, which is what a wrapper of modules calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *images: Tensor, **options: Any) -> Any:
        """See `AVSM.register`."""
        return self.network.register(*images, **options)


def data_parallel(network: nn.Module, device: torch.device | str) -> DistributedDataParallel:
    """An `AVSM` whose gradients are averaged over all processes in the backward pass.

    The weights themselves stay in ``network``, so that curriculum, optimiser, checkpoints and validation use it still.
    InputError outside of a process group, see `join_processes`.
    """
    if not joined():
        raise InputError("data_parallel: the processes have not been joined; start by torchrun (docs/many_gpus.md)")
    device = torch.device(device)
    # Each phase trains one of the two networks, so the other's parameters get no gradient.
    return DistributedDataParallel(
        RegisterWrapper(network), device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=True
    )


def share_of(dataset: Dataset) -> Sampler:
    """This process's share of a data set, in order: process r of n takes the items r, r + n, ...

    InputError when there are fewer items than processes: a process with none would keep the others waiting.
    """
    if len(dataset) < process_count():
        raise InputError(
            f"{len(dataset)} pairs to validate or evaluate for {process_count()} processes; list more pairs or start "
            "fewer processes"
        )
    from monai.data import DistributedSampler  # for workflows alone: MONAI takes seconds to load

    return DistributedSampler(
        dataset, even_divisible=False, num_replicas=process_count(), rank=process_rank(), shuffle=False
    )


def over_processes(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Means of an iteration's scalar tensors over all processes, whose batches are equally long; all name the same."""
    if not joined():
        return {name: value.item() for name, value in values.items()}
    numbers = torch.stack([value.detach().float() for value in values.values()])
    distributed.all_reduce(numbers)
    return dict(zip(values, (numbers / process_count()).tolist(), strict=True))


def from_first(content: Any) -> Any:
    """What the first process gives, in every process; it travels by pickle."""
    if not joined():
        return content
    box = [content]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def in_turn(items: Sequence[Any]) -> list[Any]:
    """The items of all processes, in every process, in the order of the data set that `share_of` split."""
    if not joined():
        return list(items)
    boxes: list[Any] = [None] * process_count()
    distributed.all_gather_object(boxes, list(items))
    longest = max(map(len, boxes))
    return [box[index] for index in range(longest) for box in boxes if index < len(box)]
