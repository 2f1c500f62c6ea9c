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
from scripts.settings import PRESETS, named_in
from scripts.spatial import WorldTransform

from .clock import Clock
from .method import Answer

__all__ = ["BUNDLE", "AtStart", "Ours", "weights_of"]

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
# Parts of the config that decide a transform beside its settings.
_PARTS = ("network_def", "sampling")
# What is of a network alone, in overrides and config files.
_NETWORK = ("ckpt_path", "network_def", "affine_steps", "vsvf_steps", "model")
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
        preset: one of `PRESETS`.
        overrides: config id of ``inference.json`` → value, such as ``{"vsvf_steps": 3}``; what is of a network alone
            is left away where the preset has none.
        files: config files that are read after it: a network's, as ``models/general.json``, or overrides; likewise.
    """

    deterministic = True

    def __init__(
        self,
        name: str,
        preset: str = "fast",
        overrides: Mapping[str, Any] | None = None,
        files: Sequence[str | Path] = (),
    ) -> None:
        self.name, self.preset = name, preset
        self.files = tuple(Path(file).absolute() for file in files)
        self.overrides = {"device": "cpu", **(overrides or {})}
        # A network's first pair pays for memory and the choice of kernels.
        self.warms_up = PRESETS[preset].network
        self._gpu: Ours | None = None

    @property
    def weights(self) -> Path | None:
        """The weights' file; None without a network."""
        return Path(self._config().get_parsed_content("ckpt_path")) if PRESETS[self.preset].network else None

    def _config(self) -> ConfigParser:
        """The config, nothing of it built."""
        files, overrides = self._choices
        return inference_parser(None, files, **overrides)

    @property
    def _choices(self) -> tuple[list[Path], dict[str, Any]]:
        """The config files and overrides that matter to the preset."""
        files, overrides = list(self.files), {"preset": self.preset, **self.overrides}
        if not PRESETS[self.preset].network:
            files = [file for file in files if not any(named_in([file], name) is not None for name in _NETWORK)]
            overrides = {key: value for key, value in overrides.items() if key.split("#")[0] not in _NETWORK}
        return files, overrides

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
        files, overrides = self._choices
        return Registrar(None, files, **overrides)

    def parameters(self) -> dict[str, Any]:
        """The config's settings and parts, the weights by their hash, and versions."""
        parser, weights, versions = self._config(), self.weights, {}
        for package in ("avsm", "torch"):
            with suppress(PackageNotFoundError):
                versions[package] = version(package)
        found = {
            "settings": _that_matter(self.registrar.settings),
            "parts": {key: parser.config[key] for key in _PARTS},
            "weights_sha256": None if weights is None else weights_hash(weights),
            "versions": versions,
        }
        return json.loads(json.dumps(found, default=str))

    def on_gpu(self) -> Ours:
        """The same on the first GPU."""
        if self._gpu is None:
            self._gpu = Ours(self.name, self.preset, {**self.overrides, "device": "cuda:0"}, self.files)
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
            {"seconds": dict(found.seconds), "affine_steps": found.affine_steps, "optimisation": found.facts},
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
