"""One way to register, which command line, Python, MLflow, MONAI Label and Deploy build from the same config."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch

from ..errors import InputError
from ..monai_parts import ConfigParser, config_parser
from ..settings import (
    BUNDLE,
    PACKAGE,
    SETTINGS,
    WITH_NETWORK,
    default,
    is_plain,
    models,
    named_in,
    network_file,
    preset_of,
)
from .accept import Accepted
from .batch import Batch
from .pair import Pair
from .progress import REGISTER, WRITE, Tell, nothing
from .result import Result
from .start import Start

__all__ = ["Registrar", "inference_parser", "usable_device"]


def usable_device(name: str | torch.device) -> torch.device:
    """A device that holds tensors here.

    Args:
        name: such as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        InputError: for no name of a device, or one that this machine or this PyTorch does not have.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].split(": ")[0]
        if reason.startswith("Expected one of"):  # two dozen kinds
            reason = "no such kind"
        known = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise InputError(f"device={name}: cannot be used ({reason}); give one of {', '.join(known)}") from error
    return device


def inference_parser(
    model: str | None = None, config_files: Sequence[str | os.PathLike] = (), **settings: Any
) -> ConfigParser:
    """The parsed ``configs/inference.json``, ready to give its parts.

    Args:
        model: a network of `models`; None for the default one.
        config_files: configs that come after the network's file, such as a data set's overrides.
        settings: config id → value, ids of parts with ``#``: ``**{"engine#regularisation": 5.0}``. A text that
            MONAI would run as code or follow as a reference is refused: settings may come from a request.

    Raises:
        InputError: for a model that does not exist or that the preset does without, such a text, or an id that
            nothing reads.
    """
    known, named = models(), model or named_in(config_files, "model")
    if model is not None and model not in known:
        raise InputError(f"model={model}: no such network; give one of {', '.join(known)}")
    for name, value in settings.items():
        _refuse_expressions(name, value)
    preset = settings.get("preset") or named_in(config_files, "preset") or default("preset")
    files, network = [BUNDLE / "configs" / "inference.json"], network_file(config_files, model)
    if preset_of(preset).network:
        files.append(network)
    elif named:
        raise InputError(f"model={named}: is a network, and preset {preset} uses none; {WITH_NETWORK}")
    parser = config_parser([*files, *config_files])
    parser.set(_known_as(parser.get(), PACKAGE))
    _refuse_unread(settings, parser.get())
    if "device" in settings:
        usable_device(settings["device"])
    parser.update({"bundle_root": str(BUNDLE), "model": network.stem, **settings})
    if not preset_of(preset).network:
        parser["network_def"] = None  # would be built
    return parser


def _refuse_unread(settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse ids that the config does not have."""
    ids = {setting.name: setting.id for setting in SETTINGS}
    for name in settings:
        if (head := name.partition("#")[0]) not in config:
            near = [ids[head]] if head in ids else get_close_matches(head, config, 1)
            mend = f"give {near[0]}" if near else "see configs/inference.json"
            raise InputError(f"{name}: nothing in the config has this id; {mend}")


def _refuse_expressions(name: str, value: Any) -> None:
    """Refuse whatever MONAI's parser would not take as plain data."""
    if isinstance(value, str) and not is_plain(value):
        raise InputError(f"{name}={value!r}: expressions and references are not allowed here; give a plain value")
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if str(key).startswith("_") or not isinstance(key, str):
                raise InputError(f"{name}: {key!r} is no setting; give plain values")
            _refuse_expressions(f"{name}#{key}", entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            _refuse_expressions(name, entry)


def _known_as(config: Any, package: str) -> Any:
    """A config whose components are those of the package by the name under which this code runs."""
    if isinstance(config, dict):
        return {key: _known_as(value, package) for key, value in config.items()}
    if isinstance(config, list):
        return [_known_as(value, package) for value in config]
    return re.sub(r"\bscripts\.", f"{package}.", config) if isinstance(config, str) else config


class Registrar:
    """Registers any two images as ``avsm register`` does; built once, called for each pair.

    Args:
        model: see `inference_parser`.
        config_files: see `inference_parser`.
        begin: begin a workflow as the config says: log format, seed, threads, a look at output folder and pairs.
        settings: see `inference_parser`.

    Raises:
        InputError: for a setting, or weights, that cannot be used.
    """

    def __init__(
        self,
        model: str | None = None,
        config_files: Sequence[str | os.PathLike] = (),
        begin: bool = False,
        **settings: Any,
    ) -> None:
        self._parser = parser = inference_parser(model, config_files, **settings)
        if begin:
            parser.get_parsed_content("initialize")
        self.device: torch.device = torch.device(parser.get_parsed_content("device"))
        self.method = parser.get_parsed_content("method_def")
        self.sampling = parser.get_parsed_content("sampling")
        self.accepting, self.warping, self.measuring = (
            parser.get_parsed_content(name) for name in ("accepting", "warping", "measuring")
        )
        self.settings: dict[str, Any] = parser.get_parsed_content("settings")

    def __call__(self, pair: Pair, source: Any = None) -> Result:
        """Register.

        Args:
            pair: the images, perhaps with labels and masks.
            source: the object that the moving image was made of, whose kind `Result.moved` has.

        Raises:
            InputError: for images that no grid can be laid on, see `lay_grids`.
        """
        result = self.register({"pair": pair})
        result.source = source
        return result

    def register(self, item: Mapping[str, Any], tell: Tell = nothing) -> Result:
        """Register the ``pair`` of an item.

        Args:
            item: of a list of pairs, read.
            tell: see `Registers`.
        """
        tell(0.0, REGISTER)
        item = self.sampling(item)
        item["found"] = self.method(item["sampled"].to(self.device), tell)
        tell(0.0, WRITE)
        return self.measuring(self.warping(self.accepting(item)))["result"]

    def accepted(self, pair: Pair, start: Start | None = None) -> Accepted:
        """What a registration found, without moved images and measures.

        Args:
            pair: see `__call__`.
            start: a transform to start from.
        """
        item = self.sampling({"pair": pair, "start": start})
        item["found"] = self.method(item["sampled"].to(self.device))
        return self.accepting(item)["accepted"]

    def batch(self) -> Batch:
        """The pairs that the settings name, to be registered and written."""
        parts = (self._parser.get_parsed_content(name) for name in ("dataset_data", "writer", "facts"))
        return Batch(self, *parts, reading=self._parser.get_parsed_content("reading"))
