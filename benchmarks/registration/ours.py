"""Our own systems as methods: whatever ``avsm register`` can be told to do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from scripts.errors import InputError
from scripts.formats import Image
from scripts.networks import weights_hash
from scripts.registration import Pair, Registrar, inference_parser, lay_grids
from scripts.spatial import WorldTransform

from .clock import Clock
from .method import Answer

__all__ = ["BUNDLE", "AtStart", "Ours", "weights_of"]

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
# Parts of the config that decide a transform beside its settings.
_PARTS = {
    "avsm": ("network_def", "instance_opt", "vsvf_opt", "sampling"),
    "affine-opt": ("affine_opt", "sampling"),
    "vsvf-opt": ("affine_opt", "vsvf_opt", "bare_network", "sampling"),
}
# Settings that only say where or what else is written.
_NO_MATTER = ("ckpt_path", "device", "threads", "labels", "interpolation", "label_interpolation")


class AtStart:
    """No registration: what stands before one.

    Args:
        name: how tables call it.
        initialisation: of `lay_grids`: ``"header"`` leaves all where the headers put it, ``"geometry"`` lays centre of
            the field of view on centre.
    """

    deterministic = True

    def __init__(self, name: str, initialisation: str) -> None:
        self.name, self.initialisation = name, initialisation

    def missing(self) -> str | None:
        """It can always run."""
        return None

    def parameters(self) -> dict[str, Any]:
        """The initialisation."""
        return {"initialisation": self.initialisation}

    def __call__(self, fixed: Image, moving: Image, threads: int = 1) -> Answer:
        """The initialisation as a transform."""
        with Clock() as clock:
            transform = lay_grids(fixed, moving, initialisation=self.initialisation).initial
        inverse = [WorldTransform(np.linalg.inv(transform.linear))]
        return Answer([transform], clock.seconds, inverse, cpu_seconds=clock.cpu_seconds)


class Ours:
    """``avsm register`` on images in memory: sampling, method, world transforms; no reading, measuring or writing.

    Args:
        name: how tables call it.
        method: ``"avsm"``, ``"affine-opt"`` or ``"vsvf-opt"``.
        overrides: config id of ``inference.json`` → value, such as ``{"vsvf_steps": 3}``.
        files: config files that are read after it: a network's, such as ``models/knee.json``, or overrides.
    """

    deterministic = True

    def __init__(
        self,
        name: str,
        method: str = "avsm",
        overrides: Mapping[str, Any] | None = None,
        files: Sequence[str | Path] = (),
    ) -> None:
        self.name, self.method = name, method
        self.files = tuple(Path(file).absolute() for file in files)
        self.overrides = {"device": "cpu", **(overrides or {})}
        # A network's first pair pays for memory and the choice of kernels.
        self.warms_up = method == "avsm"
        self._gpu: Ours | None = None

    @property
    def weights(self) -> Path | None:
        """The weights' file; None without a network."""
        return Path(self._config().get_parsed_content("ckpt_path")) if self.method == "avsm" else None

    def _config(self) -> ConfigParser:
        """The config, nothing of it built."""
        return inference_parser(None, self.files, method=self.method, **self.overrides)

    def missing(self) -> str | None:
        """Weights that are not there.

        Raises:
            InputError: for a config file that does not exist.
        """
        for file in self.files:
            if not file.is_file():
                raise InputError(f"{file}: no such config file; correct --config")
        weights = self.weights
        if weights is not None and not weights.is_file():
            return f"{self.name}: no weights at {weights.name}; train them, or give --weights"
        return None

    @cached_property
    def registrar(self) -> Registrar:
        """The config, built when it is first needed."""
        return Registrar(None, self.files, method=self.method, **self.overrides)

    def parameters(self) -> dict[str, Any]:
        """The config's settings and parts, the weights by their hash, and versions."""
        parser, weights, versions = self._config(), self.weights, {}
        for package in ("avsm", "torch"):
            with suppress(PackageNotFoundError):
                versions[package] = version(package)
        found = {
            "settings": _that_matter(self.registrar.settings),
            "parts": {key: parser.config[key] for key in _PARTS[self.method]},
            "weights_sha256": None if weights is None else weights_hash(weights),
            "versions": versions,
        }
        return json.loads(json.dumps(found, default=str))

    def on_gpu(self) -> Ours:
        """The same on the first GPU."""
        if self._gpu is None:
            self._gpu = Ours(self.name, self.method, {**self.overrides, "device": "cuda:0"}, self.files)
        return self._gpu

    def __call__(self, fixed: Image, moving: Image, threads: int = 1) -> Answer:
        """Register one pair."""
        registrar, pair = self.registrar, Pair(fixed, moving)
        accept = registrar.accepting
        torch.set_num_threads(threads)
        set_determinism(0)
        with Clock() as clock:
            item = registrar.sampling({"pair": pair})
            found = item["found"] = registrar.method(item["sampled"].to(registrar.device))
            accepted = accept(item)["accepted"]
        return Answer(
            [accepted.transform],
            clock.seconds,
            list(accepted.inverse),
            [accepted.affine],
            (*pair.notes, *found.notes, *accepted.notes),
            {"seconds": dict(found.seconds), "affine_steps": found.affine_steps, **found.facts},
            clock.cpu_seconds,
        )


def _that_matter(settings: Any) -> Any:
    """Settings, and those of their parts, that decide a transform."""
    if not isinstance(settings, Mapping):
        return settings
    return {key: _that_matter(value) for key, value in settings.items() if key not in _NO_MATTER}


def weights_of(path: str | Path | None) -> dict[str, Any]:
    """The override that names weights; empty for the shipped ones."""
    return {} if path is None else {"ckpt_path": str(Path(path).absolute())}
