"""The network as an MLflow model: a table of pairs in, files and a table of figures out.

MLflow's loader calls `_load_pyfunc` in whatever process asks for the model; the code comes with the model. What a row
asks for is what ``avsm register`` does, with the same files in its ``output_dir``.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai.bundle import ConfigParser

from .errors import InputError, input_error
from .networks import load_weights
from .registration.options import usable_device
from .registration.write import METRICS
from .tracking.model import FIGURES, FILES, INPUTS, OPTIONAL, PARAMETERS, SETTINGS, WEIGHTS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PairModel"]

_BUNDLE = Path(__file__).resolve().parents[1]
_NAMES = {
    "moved": "moved.nii.gz",
    "moved_label": "moved_label.nii.gz",
    "transform": "transform.h5",
    "inverse_transform": "inverse_transform.h5",
    "displacement": "displacement.nii.gz",
    "jacobian": "jacobian.nii.gz",
    "metrics": METRICS,
    "report": "report.html",
}
logger = logging.getLogger(__name__)


class PairModel:
    """Registers the pairs of a table.

    Args:
        folder: with the weights and the settings that they need.

    Raises:
        InputError: when the weights do not fit the settings.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.weights = Path(folder) / WEIGHTS
        self.settings: dict[str, Any] = json.loads((Path(folder) / SETTINGS).read_text())
        load_weights(self._parser().get_parsed_content("network_def"), self.weights)

    def predict(self, table: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Register the pair of each row, and write its files.

        Args:
            table: a row a pair. Columns ``fixed`` and ``moving`` (a NIfTI, NRRD or MetaImage file, or a folder with one
                DICOM series), ``output_dir`` (created if need be), and perhaps ``fixed_label``, ``moving_label``,
                ``fixed_mask``, ``moving_mask``. Paths are those of the machine on which the model runs.
            params: ``device`` (empty: a GPU where there is one), ``initialisation``, ``affine_only``,
                ``optimisation_steps`` and ``report``, as of ``avsm register``.

        Returns:
            A row a pair, in the same order: ``output_dir``, the paths of its files (empty where one was not written),
            figures (NaN where there is none), and ``error``, empty where all went well.

        Raises:
            InputError: when two rows write into one folder, a path is missing, or no row could be registered.
        """
        import pandas as pd

        options = {**PARAMETERS, **(params or {})}
        rows = [_request(index, row) for index, row in enumerate(table.to_dict("records"))]
        folders = [row["output_dir"].resolve() for row in rows]
        for folder in folders:
            if folders.count(folder) > 1:
                raise InputError(f"{folder}: output_dir of more than one row; give each pair its own folder")
        if options["device"]:
            usable_device(options["device"])
        found = [self._row(row, options) for row in rows]
        if found and all(row["error"] for row in found):
            raise InputError(found[0]["error"])
        return pd.DataFrame(found, columns=["output_dir", *FILES, *FIGURES, "error"])

    def _row(self, row: Mapping[str, Path], options: Mapping[str, Any]) -> dict[str, Any]:
        """Register one pair; an error is its row's."""
        folder = row["output_dir"].absolute()
        result = {
            "output_dir": str(folder),
            **dict.fromkeys(FILES, ""),
            **dict.fromkeys(FIGURES, math.nan),
            "error": "",
        }
        given = {name: value for name, value in options.items() if name != "device" or value}
        try:
            self._parser({**row, "output_dir": folder, **given}).get_parsed_content("cohort").run()
        except Exception as error:  # one bad file must not take the other rows with it
            found = input_error(error)
            result["error"] = str(found).splitlines()[-1] if found else f"{type(error).__name__}: {error}"
            logger.warning(f"warning: {result['error']}", exc_info=None if found else error)
            return result
        result.update({name: str(folder / file) for name, file in _NAMES.items() if (folder / file).is_file()})
        result.update(_figures(json.loads((folder / METRICS).read_text())))
        return result

    def _parser(self, overrides: Mapping[str, Any] | None = None) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config(str(_BUNDLE / "configs" / "inference.json"))
        weights = {"bundle_root": str(_BUNDLE), "ckpt_path": self.weights}
        parser.update({**weights, **self.settings, **(overrides or {})})
        return parser


def _request(index: int, row: Mapping[str, Any]) -> dict[str, Path]:
    """The paths of a row. They are no strings, in which the config's parser would read '#' as a reference."""
    given = {name: row.get(name) for name in (*INPUTS, *OPTIONAL)}
    paths = {name: Path(value) for name, value in given.items() if isinstance(value, str | os.PathLike) and str(value)}
    for name in INPUTS:
        if name not in paths:
            raise InputError(f"row {index}: {name}={given[name]!r}: give a path")
    return paths


def _figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a row from ``metrics.json``."""
    ncc, dice = metrics["similarity"]["ncc"], metrics.get("labels", {}).get("mean", {}).get("dice", {})
    return {
        "ncc_before": ncc["before"],
        "ncc_final": ncc["final"],
        "dice_before": dice.get("before", math.nan),
        "dice_final": dice.get("final", math.nan),
        "folds": float(metrics["folds"]),
        "std_log_jacobian": metrics["jacobian"]["std_log"],
        "inverse_consistency_mm": metrics["inverse_consistency_mm"]["mean"],
        "seconds": metrics["seconds"]["total"],
    }


def _load_pyfunc(data_path: str) -> PairModel:
    """What MLflow calls to load the model."""
    return PairModel(data_path)
