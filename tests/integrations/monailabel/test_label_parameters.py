"""Values of requests to MONAI Label, checked by the bundle's one schema; needs nothing of MONAI Label."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture
def parameters(monkeypatch):
    """The module, with MONAI Label's exception stood in for."""
    stand_in = ModuleType("monailabel.interfaces.exception")
    stand_in.MONAILabelError = SimpleNamespace(INVALID_INPUT="invalid")
    stand_in.MONAILabelException = type("MONAILabelException", (Exception,), {"__init__": lambda self, *_: None})
    for name in ("monailabel", "monailabel.interfaces"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "monailabel.interfaces.exception", stand_in)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "integrations" / "monailabel"))
    for name in ("avsm_label", "avsm_label.errors", "avsm_label.parameters"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import avsm_label.parameters as module

    yield module
    for name in [name for name in sys.modules if name.startswith("avsm_label")]:
        del sys.modules[name]


GOOD = [
    ("steps", 3, 3), ("steps", 3.0, 3), ("steps", None, 5), ("rate", 0.5, 0.5), ("rate", 1, 1), ("kind", "b", "b"),
    ("kind", ["b", "a"], "b"), ("kept", False, False), ("image", "a-1.nii", "a-1.nii"), ("image", "", ""),
]  # fmt: skip
BAD = [
    *(("steps", value) for value in (-1, 11, 1.5, True, "3", 10**400, float("nan"), float("inf"), [3], {}, "$3")),
    *(("rate", value) for value in (2, -0.1, "0.5", False, float("nan"), float("inf"), 10**400)),
    *(("kind", value) for value in ("c", "", "$a", 1, ["c"], [], {"_target_": "os.system"})),
    *(("kept", value) for value in (1, 0, "true", "$True", [])),
    *(("image", value) for value in ("$x", "@x", "%x", " $x", 3, ["a"], {"a": 1}, "x" * 5000, "  ")),
    ("other", 1),
]


@pytest.fixture
def declared(parameters):
    return {
        "steps": parameters.Parameter(5, "number of steps", int, None, 0, 10),
        "rate": parameters.Parameter(0.1, "rate", float, None, 0, 1),
        "kind": parameters.Parameter("a", "kind", choices=("b",)),
        "kept": parameters.Parameter(True, "whether it is kept", bool),
        "image": parameters.Parameter("", "image"),
    }


@pytest.mark.parametrize(("name", "value", "read"), GOOD, ids=str)
def test_good_values(parameters, declared, name, value, read):
    found = parameters.read_parameters({name: value, "client_id": "slicer"}, declared)
    assert found[name] == read and type(found[name]) is type(read) and found.keys() == declared.keys()


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: str(value)[:20])
def test_bad_values(parameters, declared, name, value):
    with pytest.raises(Exception) as caught:
        parameters.read_parameters({name: value}, declared)
    assert type(caught.value).__name__ == "RequestError" and caught.value.status == 400
    text = caught.value.args[0]
    assert text.startswith(name) and "\n" not in text and len(text) < 600
