"""What a process does alone, and what the launcher tells it; several at once: tests/integrations."""

import pytest
import torch

from scripts import processes
from scripts.errors import InputError


@pytest.mark.parametrize(("local_rank", "gpus", "expected"), [
    (None, 0, "cpu"),
    ("1", 0, "cpu"),
    (None, 2, "cuda:0"),
    ("0", 2, "cuda:0"),
    ("1", 2, "cuda:1"),
    ("3", 1, "cuda:0"),
])  # fmt: skip
def test_own_device(monkeypatch, local_rank, gpus, expected):
    """Each process its own GPU; where the scheduler shows it one GPU only, that one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert processes.own_device() == torch.device(expected)


def test_launched(monkeypatch):
    for key in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(key, raising=False)
    assert processes.launched() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert processes.launched() == (2, 3)
    for bad in ("3", "-1", "x", ""):
        monkeypatch.setenv("RANK", bad)
        with pytest.raises(InputError, match=f"RANK={bad}, WORLD_SIZE=3: not the number"):
            processes.launched()


def test_alone_nothing_is_exchanged():
    assert processes.over_processes({"loss": torch.tensor(2.0)}) == {"loss": 2.0}
    assert processes.from_first([1]) == [1] and processes.in_turn((1, 2)) == [1, 2] and processes.is_first()
    assert list(processes.share_of([5, 6, 7])) == [0, 1, 2]
    processes.leave_processes()


def test_more_processes_than_gpus(monkeypatch):
    settings = {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "4"}
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="4 processes on a machine with 2 GPUs; start torchrun --nproc_per_node 2"):
        processes.join_processes("cuda:1")


def test_data_parallel_needs_a_group():
    with pytest.raises(InputError, match="start by torchrun"):
        processes.data_parallel(torch.nn.Linear(1, 1), "cpu")
