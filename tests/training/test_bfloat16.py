"""`amp` of the configs follows the machine."""

import pytest
import torch

from scripts.training.start import bfloat16_pays


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": False, "avx2": True}, False),
        ({}, False),
    ],
)
def test_a_cpu_needs_instructions_for_it(monkeypatch, able, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert bfloat16_pays("cpu") is expected
    assert bfloat16_pays(torch.device("cpu")) is expected


def test_other_devices_have_them():
    assert bfloat16_pays("cuda:0") is True
