"""The network as an MLflow model: a table of pairs in, files and a table of figures out.

MLflow's loader calls `_load_pyfunc` in whatever process asks for the model; the code comes with the model. What a row
asks for is what ``avsm register`` does, with the same files in its ``output_dir``.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError, input_error
from .networks import weights_hash
from .registration import METRICS, Pair, PairWriter, Registrar
from .settings import PRESETS, WITH_NETWORK, checked, config_values
from .storage import output_folder
from .tracking.model import FIGURES, INPUTS, OPTIONAL, PRESET, RESULTS, SETTINGS, WEIGHTS, WEIGHTS_HASH, parameters

if TYPE_CHECKING:
    import pandas as pd

_SUFFIXES = {"transform": "h5", "inverse_transform": "h5", "metrics": "json", "report": "html"}
logger = logging.getLogger(__name__)


class PairModel:
    """Registers the pairs of a table.

    Args:
        folder: with the weights and the settings that they need.

    Raises:
        InputError: when the weights are not those that were registered, or do not fit the settings.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        known = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8")).get(WEIGHTS_HASH)
        if known is not None and weights_hash(self.folder / WEIGHTS) != known:
            raise InputError(f"{self.folder / WEIGHTS}: not the weights that were registered; register the model anew")
        self.registrar()

    def registrar(self, **options: Any) -> Registrar:
        """A registrar with the model's own settings and weights; options, taken as plain data, have preset `PRESET`.

        InputError for a value that an option cannot have, or weights that do not fit.
        """
        values = config_values({"preset": PRESET, **options})
        if not PRESETS[values["preset"]].network:
            raise InputError(f"preset={values['preset']}: has no network, which this model is; {WITH_NETWORK}")
        try:
            return Registrar(config_files=[self.folder / SETTINGS], ckpt_path=self.folder / WEIGHTS, **values)
        except Exception as error:  # a config wraps what goes wrong in it
            found = input_error(error)
            if found is None:
                raise
            raise InputError(str(found)) from error

    def predict(self, table: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Register the pair of each row, and write its files.

        Args:
            table: a row for each pair. Columns ``fixed`` and ``moving`` (a NIfTI, NRRD or MetaImage file, or a folder
                with one DICOM series), ``output_dir`` (created if need be), and perhaps ``fixed_label``,
                ``moving_label``, ``fixed_mask``, ``moving_mask``. Paths are those of the machine on which the model
                runs.
            params: ``preset`` (one with a network: that is what the model is), ``device`` (empty: a GPU where there is
                one), ``initialisation``, ``transform`` and ``report``, as of ``avsm register``.

        Returns:
            A row for each pair, in the same order: ``output_dir``, the paths of its files (empty where one was not
            written), figures (NaN where there is none), and ``error``, empty where all went well.

        Raises:
            InputError: for another parameter or value, when two rows write into one folder, a path is missing, or no
                row could be registered.
        """
        import pandas as pd

        options = _options(params or {})
        rows = [_request(index, row) for index, row in enumerate(table.to_dict("records"))]
        folders = Counter(os.path.realpath(row["output_dir"]) for row in rows)
        for folder, count in folders.items():
            if count > 1:
                raise InputError(f"{folder}: output_dir of more than one row; give each pair its own folder")
        report = options.pop("report")
        registrar = self.registrar(**options)
        found = [_row(registrar, row, report) for row in rows]
        if found and all(row["error"] for row in found):
            raise InputError(found[0]["error"])
        return pd.DataFrame(found, columns=["output_dir", *RESULTS, *FIGURES, "error"])


def _options(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a request, which may come from anybody; those not given have their defaults."""
    options = parameters()
    for name, value in params.items():
        if name not in options:
            raise InputError(f"{name}: no such parameter; give one of {', '.join(options)}")
        options[name] = value.item() if isinstance(value, np.generic) else value
    # An empty text, of which MLflow has made a parameter's default, stands for none.
    return {name: checked(name, value) for name, value in options.items() if not (name == "device" and value == "")}


def _request(index: int, row: Mapping[str, Any]) -> dict[str, Path]:
    given = {name: row.get(name) for name in (*INPUTS, *OPTIONAL)}
    paths = {name: Path(value) for name, value in given.items() if isinstance(value, str | os.PathLike) and str(value)}
    for name in INPUTS:
        if name not in paths:
            raise InputError(f"row {index}: {name}={given[name]!r}: give a path")
    return paths


def _row(registrar: Registrar, row: Mapping[str, Path], report: bool) -> dict[str, Any]:
    """Register one pair; an error is its row's."""
    folder = row["output_dir"].absolute()
    result = {"output_dir": str(folder), **dict.fromkeys(RESULTS, ""), **dict.fromkeys(FIGURES, math.nan), "error": ""}
    try:
        with output_folder(folder):
            writer, pair = PairWriter(folder, report=report), Pair.read(row)
            writer.check(pair)
            writer.write(registrar(pair))
    except Exception as error:  # one bad file must not take the other rows with it
        found = input_error(error)
        result["error"] = str(found).splitlines()[-1] if found else f"{type(error).__name__}: {error}"
        logger.warning(f"warning: {result['error']}", exc_info=None if found else error)
        return result
    paths = {name: folder / f"{name}.{_SUFFIXES.get(name, 'nii.gz')}" for name in RESULTS}
    result.update({name: str(path) for name, path in paths.items() if path.is_file()})
    result.update(_figures(json.loads((folder / METRICS).read_text(encoding="utf-8"))))
    return result


def _figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    ncc, dice = metrics["similarity"]["ncc"], metrics.get("labels", {}).get("mean", {}).get("dice", {})
    overlap = [dice.get(stage, math.nan) for stage in ("before", "final")]
    regular = [metrics["jacobian"]["std_log"], metrics["inverse_consistency_mm"]["mean"], metrics["seconds"]["total"]]
    return dict(zip(FIGURES, [ncc["before"], ncc["final"], *overlap, float(metrics["folds"]), *regular], strict=True))


def _load_pyfunc(data_path: str) -> PairModel:
    """What MLflow calls to load the model."""
    return PairModel(data_path)
