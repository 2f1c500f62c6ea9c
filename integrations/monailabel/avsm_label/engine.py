"""The bundle at work: which weights, and one pair registered in memory or into a folder of files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scripts.errors import InputError
from scripts.networks.weights import weights_hash
from scripts.registration import METRICS, Pair, Registrar, Result, inference_parser, usable_device
from scripts.settings import (
    BUNDLE,
    INITIALISATIONS,
    PRESETS,
    TRANSFORMS,
    WITH_NETWORK,
    checked,
    default,
    named_in,
    network_file,
)

from .parameters import Parameter

__all__ = ["SETTINGS", "Engine", "Weights", "device_names"]

_KEPT = 2  # registrars, each with its network


def device_names() -> list[str]:
    """Devices of this machine, the default first."""
    return [*(f"cuda:{index}" for index in range(torch.cuda.device_count())), "cpu"]


SETTINGS: Mapping[str, Parameter] = {
    "weights": Parameter(
        "auto", "weights: those trained here where there are any (auto), or one kind", choices=("trained", "bundle")
    ),
    "preset": Parameter(
        "auto",
        "preset: the network where it was trained here or the server was given a model, otherwise "
        f"{default('preset')} (auto), or one by name",
        choices=tuple(PRESETS),
    ),
    "transform": Parameter(default("transform"), "kind of transform", choices=TRANSFORMS),
    "initialisation": Parameter(default("initialisation"), "initialisation", choices=INITIALISATIONS),
    "device": Parameter(device_names()[0], "device", choices=device_names()),
}
"""Parameters of every task that registers."""


@dataclass(frozen=True)
class Weights:
    """Weights of the network.

    Attributes:
        path: the file.
        source: ``trained``, by this server on these studies, or ``bundle``.
    """

    path: Path
    source: str

    def facts(self) -> dict[str, str]:
        """What a result says of them."""
        return {"source": self.source, "sha256": weights_hash(self.path)}


class Engine:
    """Registers pairs by the bundle's ``inference.json``.

    Args:
        home: folder of this app in the studies folder; weights trained here lie in it.
        model: network of the bundle; None for the one that a config names, or the default.
        config_files: configs that come after the network's file; a relative path is looked for in the bundle's
            ``configs``.
        threads: CPU threads of torch, for training, which has a process of its own; None leaves the choice to it.

    Raises:
        InputError: for a model or a config that does not exist.
    """

    def __init__(
        self,
        home: str | os.PathLike,
        model: str | None = None,
        config_files: Sequence[str | os.PathLike] = (),
        threads: int | None = None,
    ) -> None:
        self.home = Path(home)
        self.model = None if model is None else checked("model", model)
        self.threads = threads
        self.config_files = [BUNDLE / "configs" / file for file in config_files]
        for file in self.config_files:
            if not file.is_file():
                raise InputError(f"{file}: config file does not exist; correct config_files")
        self.network_file = network_file(self.config_files, self.model)
        self.named = self.model is not None or named_in(self.config_files, "model") is not None
        self._registrars: dict[tuple, Registrar] = {}

    @property
    def trained(self) -> Path:
        """Where weights that were trained on these studies are put."""
        return self.home / "model.pt"

    @property
    def training_configs(self) -> list[Path]:
        """The config files of training, overrides last."""
        return [BUNDLE / "configs" / "train.json", self.network_file, *self.config_files]

    def preset(self, settings: Mapping[str, Any]) -> str:
        """The preset of a request: by name, or a network's where there is one of this server's own or one is asked for.

        Raises:
            InputError: for weights with a preset that has no network.
        """
        chosen, weights = settings["preset"], settings["weights"]
        if chosen == "auto":
            own = self.named or weights != "auto" or self.trained.is_file()
            chosen = "fast" if own else default("preset")
        if weights != "auto" and not PRESETS[chosen].network:
            raise InputError(f"weights={weights}: belong to a network, and preset {chosen} uses none; {WITH_NETWORK}")
        return chosen

    def facts(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What a result says of how it came about."""
        preset = self.preset(settings)
        return {
            "preset": preset,
            "weights": self.weights(settings["weights"]).facts() if PRESETS[preset].network else None,
        }

    def weights(self, choice: str = "auto") -> Weights:
        """The weights of the network.

        Args:
            choice: ``auto``, ``trained`` or ``bundle``.

        Raises:
            InputError: for ``trained`` where nothing has been trained yet.
        """
        if choice != "bundle" and self.trained.is_file():
            return Weights(self.trained, "trained")
        if choice == "trained":
            raise InputError("weights: nothing has been trained on these studies yet; train, or give 'bundle'")
        parser = inference_parser(self.model, self.config_files, preset="fast")
        return Weights(Path(parser.get_parsed_content("ckpt_path")), "bundle")

    def register(
        self,
        fixed: str | os.PathLike,
        moving: str | os.PathLike,
        settings: Mapping[str, Any],
        moving_label: str | os.PathLike | None = None,
    ) -> Result:
        """Register two images in memory.

        Args:
            fixed: path of the fixed image.
            moving: path of the moving image.
            settings: values of `SETTINGS`.
            moving_label: path of a label map on the moving image's grid, which is read and checked as well.

        Returns:
            The result, with the images in its ``pair`` and lines for the user in its ``warnings``.

        Raises:
            InputError: for files that cannot be used.
        """
        pair = Pair.read({"fixed": fixed, "moving": moving, "moving_label": moving_label})
        return self._registrar(settings)(pair)

    def register_to_folder(
        self, files: Mapping[str, str | None], settings: Mapping[str, Any], folder: Path, **overrides: Any
    ) -> dict[str, Any]:
        """Register two images and write what ``avsm register`` writes.

        Args:
            files: ``fixed``, ``moving``, perhaps ``fixed_label`` and ``moving_label``: paths.
            settings: values of `SETTINGS`.
            folder: for the results.
            overrides: further ids of ``inference.json``.

        Returns:
            The content of ``metrics.json``.

        Raises:
            InputError: for files that cannot be used.
        """
        parser = inference_parser(
            *self._configs(settings), **self._overrides(settings), **files, output_dir=folder, **overrides
        )
        parser.get_parsed_content("batch").run()
        return json.loads((folder / METRICS).read_text(encoding="utf-8"))

    def _configs(self, settings: Mapping[str, Any]) -> tuple[str | None, list[Path]]:
        """Model and configs of a registration: without a network, only those that are for none."""
        if PRESETS[self.preset(settings)].network:
            return self.model, self.config_files
        return None, [file for file in self.config_files if named_in([file], "model") is None]

    def _overrides(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Ids of ``inference.json`` for the settings of a request."""
        preset = self.preset(settings)
        weights = {"ckpt_path": str(self.weights(settings["weights"]).path)} if PRESETS[preset].network else {}
        device = str(usable_device(settings["device"]))
        return {
            "preset": preset,
            "device": device,
            **{n: settings[n] for n in ("transform", "initialisation")},
            **weights,
        }

    def _registrar(self, settings: Mapping[str, Any]) -> Registrar:
        """The registrar of some settings; the last few are kept, as building one reads its weights."""
        overrides = self._overrides(settings)
        state = os.stat(overrides["ckpt_path"]) if "ckpt_path" in overrides else None
        key = (state and (state.st_size, state.st_mtime_ns), *map(str, overrides.values()))
        registrar = self._registrars.pop(key, None) or Registrar(*self._configs(settings), **overrides)
        while len(self._registrars) >= _KEPT:
            self._registrars.pop(next(iter(self._registrars)))
        self._registrars[key] = registrar
        return registrar
