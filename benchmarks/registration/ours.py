"""Our own systems as methods: whatever ``configs/inference.json``, which is ``avsm register``, can be told to do."""

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
from scripts.formats.images import Image
from scripts.networks.weights import weights_hash
from scripts.registration.grids import lay_grids
from scripts.registration.pair import PairRegistrar
from scripts.spatial.transform import WorldTransform

from .clock import Clock
from .method import Answer

__all__ = ["BUNDLE", "AtStart", "Ours", "weights_of"]

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
# Parts of the config that decide a transform and that its own account of its settings does not spell out.
_PARTS = {
    "avsm": ("network_def", "stds", "std_weights", "optimiser", "update", "preprocessing", "postprocessing"),
    "affine-opt": ("update", "preprocessing", "postprocessing"),
    "vsvf-opt": ("update", "preprocessing", "postprocessing"),
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
        method: ``"avsm"``, or a twin: ``"affine-opt"``, ``"vsvf-opt"``.
        overrides: config id of ``inference.json`` → value, such as ``{"vsvf_steps": 3}``.
        files: further config files, read after it (a data set's, such as ``hippocampus.json``).
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
        self.overrides = {"device": torch.device("cpu"), **(overrides or {})}
        # A network's first pair pays for memory and the choice of kernels.
        self.warms_up = method == "avsm"
        self._gpu: Ours | None = None

    @property
    def weights(self) -> Path | None:
        """The weights' file; None for a twin."""
        return self._weights(self._config())

    def _weights(self, parser: ConfigParser) -> Path | None:
        return Path(parser.get_parsed_content("ckpt_path")) if self.method == "avsm" else None

    def _config(self) -> ConfigParser:
        """The config, nothing of it built."""
        parser = ConfigParser()
        parser.read_config([str(BUNDLE / "configs" / "inference.json"), *map(str, self.files)])
        parser.update({"bundle_root": str(BUNDLE), **self.overrides})
        return parser

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
    def registrar(self) -> PairRegistrar:
        """The config, built when it is first needed."""
        return PairRegistrar(self.method, self.files, **self.overrides)

    def parameters(self) -> dict[str, Any]:
        """The config's settings and parts, the weights by their hash, and versions."""
        parser, versions = self._config(), {}
        weights = self._weights(parser)
        for package in ("avsm", "torch"):
            with suppress(PackageNotFoundError):
                versions[package] = version(package)
        settings = {key: value for key, value in self.registrar.settings.items() if key not in _NO_MATTER}
        parts = {key: parser.config.get(key) for key in _PARTS[self.method]}
        if settings.get("vsvf_factors") == [1]:
            # Steps at full resolution alone: what was measured before there was the setting is the same method.
            del settings["vsvf_factors"]
            parts["network_def"] = _without(parts["network_def"], "vsvf_factors")
        if "network_def" in parts and not parts["network_def"]["momentum_net"].get("only_forces"):
            momentum_net = _without(parts["network_def"]["momentum_net"], "only_forces")
            parts["network_def"] = {**parts["network_def"], "momentum_net": momentum_net}
        found = {
            "settings": settings,
            "parts": parts,
            "weights_sha256": None if weights is None else weights_hash(weights),
            "versions": versions,
        }
        return json.loads(json.dumps(found, default=str))

    def on_gpu(self) -> Ours:
        """The same on the first GPU."""
        if self._gpu is None:
            overrides = {**self.overrides, "device": torch.device("cuda:0")}
            self._gpu = Ours(self.name, self.method, overrides, self.files)
        return self._gpu

    def __call__(self, fixed: Image, moving: Image, threads: int = 1) -> Answer:
        """Register one pair."""
        registrar = self.registrar
        torch.set_num_threads(threads)
        set_determinism(0)
        with Clock() as clock:
            found = registrar(fixed, moving)
        registered = found.registered
        extra = {"seconds": dict(registered.seconds), "affine_steps": registered.affine_steps, **registered.twin}
        return Answer(
            [found.transform],
            clock.seconds,
            list(found.inverse),
            [found.affine],
            tuple(found.notes),
            extra,
            clock.cpu_seconds,
        )


def _without(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != name}


def weights_of(path: str | Path | None) -> dict[str, Any]:
    """The override that names weights; empty for the shipped ones."""
    return {} if path is None else {"ckpt_path": str(Path(path).absolute())}
