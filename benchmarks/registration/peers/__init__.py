"""The peers: other registration engines behind one small adapter each, as `registration.method.Method`.

``PEERS`` names every setting that the tables know. Settings called "(paper)" are those that the AVSM paper states;
the others were chosen by ``tune.py`` on training pairs, or are the engine's own (``benchmarks/results/tuning.md``).
An engine that is not installed says so in ``missing()``; README.md beside this file says how to install it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from registration.method import Method

__all__ = ["PEERS"]


def _peer(module: str, kind: str, settings: dict[str, Any]) -> Callable[[], Method]:
    """A maker; adapters are imported when one is made, so that a worker need not load them."""
    return lambda: getattr(import_module(f"{__name__}.{module}"), kind)(**settings)


def _voxelmorph(displacement: bool, affine: bool, data: str | None) -> dict[str, Any]:
    """A VoxelMorph by what it was trained as and on: the hippocampi, or the mixture of ``configs/general.json``."""
    words = ["VoxelMorph", *(["displacement"] if displacement else []), *(["with affine"] if affine else [])]
    run = ["voxelmorph", *(["displacement"] if displacement else []), *([] if affine else ["alone"])]
    settings: dict[str, Any] = {"integration_steps": 0 if displacement else 7, "affine_steps": 5 if affine else 0}
    if affine or data is not None:
        settings["affine_net"] = _SHIPPED_AFFINE
    if data is not None:
        words, run = [*words, f"[{data}]"], [*run, data]
        settings |= {"grid": None, "spacing": None}
    return {"name": " ".join(words), "run": "_".join(run), **settings}


_SHIPPED_AFFINE = {"channels": [32, 64, 128], "composition": "residual", "newton_window": 7}

_ALL = (
    ("itk_affine", "ItkAffine", {"name": "ITK affine"}),
    ("ants_syn", "Ants", {"name": "ANTs affine", "stage": "affine"}),
    ("niftyreg", "NiftyReg", {"name": "NiftyReg affine", "similarity": None}),
    ("elastix", "Elastix", {"name": "elastix affine", "stages": ["affine"]}),
    ("greedy", "Greedy", {"name": "Greedy affine", "deformable": False, "own_affine": True}),
    ("demons", "Demons", {"name": "Demons"}),
    ("demons", "Demons", {"name": "Demons (paper)", "sigma": 1.2, "match": False}),
    ("demons", "Demons", {"name": "Demons diffeomorphic", "forces": "diffeomorphic", "sigma": 1.2}),
    ("ants_syn", "Ants", {"name": "SyN"}),
    ("ants_syn", "Ants", {"name": "SyN CC", "metric": "CC", "sampling": 4, "iterations": [40, 20, 10]}),
    (
        "ants_syn",
        "Ants",
        {
            "name": "SyN CC (paper)",
            "metric": "CC",
            "sampling": 4,
            "iterations": [2100, 1200, 1200, 20],
            "flow_sigma": 3.0,
        },
    ),
    ("niftyreg", "NiftyReg", {"name": "NiftyReg NMI", "similarity": "nmi"}),
    ("niftyreg", "NiftyReg", {"name": "NiftyReg LNCC", "similarity": "lncc", "lncc_std": 10.0}),
    ("niftyreg", "NiftyReg", {"name": "NiftyReg NMI (paper)", "similarity": "nmi", "spacing": 10.0}),
    (
        "niftyreg",
        "NiftyReg",
        {
            "name": "NiftyReg LNCC (paper)",
            "similarity": "lncc",
            "spacing": 10.0,
            "lncc_std": 40.0,
            "log_jacobian": 0.01,
        },
    ),
    ("elastix", "Elastix", {"name": "elastix"}),
    ("elastix", "Elastix", {"name": "elastix MI", "bending": 0.0}),
    ("greedy", "Greedy", {"name": "Greedy"}),
    ("greedy", "Greedy", {"name": "Greedy own affine", "own_affine": True, "smoothing": [1.732, 0.7071]}),
    ("convexadam", "ConvexAdam", {"name": "ConvexAdam"}),
    *(
        ("voxelmorph_peer", "VoxelMorphPeer", _voxelmorph(displacement, affine, data))
        for data in (None, "general")
        for displacement in (False, True)
        for affine in (False, True)
    ),
)

PEERS: dict[str, Callable[[], Method]] = {entry[2]["name"]: _peer(*entry) for entry in _ALL}
