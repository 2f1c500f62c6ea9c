"""Freed memory is handed back, or kept, as asked for; where the C library is another one, nothing happens."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts.layers import allocator, checkpointing

BUNDLE = Path(__file__).parents[2] / "bundle"
# hblkhd of mallinfo2: bytes in blocks that came straight from the system, and go back there when they are freed.
MEASURE = """
import ctypes, sys
sys.path.insert(0, {bundle!r})
import torch
from scripts.layers import keep_large_blocks
if {keep}:
    assert keep_large_blocks()
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
before = mallinfo().hblkhd
block = torch.ones(2**24)
print(mallinfo().hblkhd - before)
"""


def straight_from_the_system(keep):
    code = MEASURE.format(bundle=str(BUNDLE), keep=keep)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(allocator._libc("mallinfo2") is None, reason="needs glibc")
def test_large_blocks_are_used_again():
    assert straight_from_the_system(False) >= 2**26 and straight_from_the_system(True) == 0


def test_checkpointed_work_hands_memory_back(monkeypatch):
    calls = []
    monkeypatch.setattr(checkpointing, "hand_back", lambda: calls.append(1))
    x = torch.ones(3, requires_grad=True)
    checkpointing.checkpointed(True, torch.square, x).sum().backward()
    assert len(calls) == 1
    checkpointing.checkpointed(False, torch.square, x)
    assert len(calls) == 1


def test_another_c_library(monkeypatch):
    monkeypatch.setattr(allocator, "_libc", lambda name: None)
    assert allocator.hand_back() is False and allocator.keep_large_blocks() is False
