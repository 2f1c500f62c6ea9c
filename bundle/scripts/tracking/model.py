"""A registration network as an MLflow model: weights, the settings they need, the bundle's code, and a signature.

What is logged is loaded by ``pyfunc.py``, which says what goes in and comes out.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai.bundle import ConfigParser

from ..errors import InputError
from ..networks import load_weights, weights_hash
from ..settings import BUNDLE, FILES, PACKAGE, default
from .server import checked_uri, connect, experiment_id, one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

WEIGHTS, SETTINGS = "model.pt", "settings.json"
WEIGHTS_HASH = "weights_sha256"
"""Key of the settings that a model is logged with: the SHA-256 of its weights."""
NAME = "avsm"
PRESET = "fast"
"""How a model registers where a request does not say it: it is its weights."""
# What weights bind: the network, and the grid and the orientation that it has learned on.
_BINDING = ("grid", "network_spacing", "orientation", "network_def")
# The columns of the model's tables; see pyfunc.py.
INPUTS = ("fixed", "moving", "output_dir")
OPTIONAL = tuple(FILES)[2:]
RESULTS = ("moved", "moved_label", "transform", "inverse_transform", "displacement", "jacobian", "metrics", "report")
FIGURES = (*(f"{name}_{stage}" for name in ("ncc", "dice") for stage in ("before", "final")), "folds")
FIGURES += ("std_log_jacobian", "inverse_consistency_mm", "seconds")
# fmt: off
_PACKAGES = (
    "mlflow", "torch", "monai", "pytorch-ignite", "nibabel", "SimpleITK", "itk", "pydicom", "isal", "h5py", "filelock",
    "nitransforms", "numpy", "scipy", "pandas", "jinja2", "matplotlib", "tqdm",
)
# fmt: on


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with its grid, and with what the network's file says in place of the expressions that read it."""
    if "network_file" not in config:
        return dict(config)
    root = str(config["bundle_root"])
    parser = ConfigParser({**config, "bundle_root": root if (Path(root) / "models").is_dir() else str(BUNDLE)})
    file = json.loads(Path(parser.get_parsed_content("network_file")).read_text(encoding="utf-8"))
    found = {key: value for key, value in file.items() if str(config.get(key, "$")).startswith("$")}
    return {**config, **found, "grid": parser.get_parsed_content("grid")}


def inference_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights of a training with an executed config need in ``configs/inference.json``: config id → value.

    The steps are those with which the last phase was validated. InputError when the config is not a training's.
    """
    phases = [phase for phase in config.get("phases", ()) if phase["epochs"] > 0]
    if not phases:
        raise InputError("phases: none in the config; give the executed config of a training")
    config = complete(config)
    settings = {key: config[key] for key in _BINDING if key in config}
    for name in ("affine_steps", "vsvf_steps"):
        found = phases[-1].get(f"validation_{name}")
        settings[name] = phases[-1].get(name, 0) if found is None else found
    settings["network_def"] = {**config["network_def"], "affine_steps": "@affine_steps", "vsvf_steps": "@vsvf_steps"}
    return settings


def read_settings(config_files: Sequence[str | os.PathLike] = ()) -> dict[str, Any]:
    """The settings of ``configs/inference.json`` that config files (such as ``models/paper.json``) override.

    Where a file says which weights it is for is left out: a model has its own. InputError for a file that is missing or
    no JSON.
    """
    config = json.loads((BUNDLE / "configs" / "inference.json").read_text(encoding="utf-8"))
    # Not the components: those of a training, of the same names, are others.
    known = {key for key, value in config.items() if not isinstance(value, dict)}
    known -= {"imports", "bundle_root", "model", "network_file", "uses_network", "ckpt_path"}
    settings: dict[str, Any] = {}
    for file in config_files:
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
            if "model" in content:
                content = {
                    **json.loads((BUNDLE / "models" / f"{content['model']}.json").read_text(encoding="utf-8")),
                    **content,
                }
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: not a readable config ({error}); give a JSON file") from error
        settings.update({key: value for key, value in content.items() if key.split("#")[0] in known})
    return settings


def check(weights: str | os.PathLike, settings: Mapping[str, Any]) -> None:
    """Load weights into the network of the settings (config id → value), to see that they fit, as `load_weights`."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "models" / "general.json"))
    for key, value in settings.items():
        if key.split("#")[0] in ("network_def", "affine_steps", "vsvf_steps"):
            parser[key] = value
    parser.set(json.loads(json.dumps(parser.get()).replace('"scripts.', f'"{PACKAGE}.')))
    load_weights(parser.get_parsed_content("network_def"), weights)


def parameters() -> dict[str, str | int | bool]:
    """The parameters of a request to the model, with their defaults; an empty text stands for none."""
    names = ("device", "initialisation", "transform", "report")
    return {"preset": PRESET} | {name: "" if default(name) is None else default(name) for name in names}


def signature() -> ModelSignature:
    """Columns of the table that goes in, of the one that comes out, and the parameters with their defaults."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    types = {str: DataType.string, int: DataType.long, bool: DataType.boolean}
    given = [ColSpec("string", name, required=name in INPUTS) for name in (*INPUTS, *OPTIONAL)]
    found = [ColSpec("string", name) for name in ("output_dir", *RESULTS)]
    found += [ColSpec("double", name) for name in FIGURES] + [ColSpec("string", "error")]
    options = [ParamSpec(name, types[type(value)], value) for name, value in parameters().items()]
    return ModelSignature(Schema(given), Schema(found), ParamSchema(options))


def log_model(
    client: MlflowClient,
    uri: str,
    weights: str | os.PathLike,
    settings: Mapping[str, Any],
    name: str,
    run_id: str | None = None,
    experiment: str | None = None,
) -> str:
    """Log a model, and register it under a name; returns the version.

    ``settings`` are what the weights need in ``inference.json``, config id → value. The same weights of the same run,
    if they are of one, are not registered again; the model is listed in the run's experiment or in that of the id
    ``experiment``. InputError when the weights do not fit the settings.
    """
    import mlflow
    from mlflow.models import Model

    check(weights, settings)
    facts = {WEIGHTS_HASH: weights_hash(weights)}
    if run_id is not None:
        for version in client.search_model_versions(f"name = '{name}'"):
            if version.run_id == run_id and version.tags.get(WEIGHTS_HASH) == facts[WEIGHTS_HASH]:
                return str(version.version)
    experiment = experiment or client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment, NAME, run_id, facts, model_type="registration")
    with tempfile.TemporaryDirectory() as folder, _default_uri(uri), warnings.catch_warnings():
        # An example would be registered to try it, and its files are nowhere.
        warnings.filterwarnings("ignore", ".*input example was not provided")
        data = Path(folder) / "data"
        data.mkdir()
        shutil.copyfile(weights, data / WEIGHTS)
        (data / SETTINGS).write_text(json.dumps({**settings, **facts}, indent=2) + "\n")
        # MLflow's own function for this wants a run that is active in the whole process.
        info = Model.log(
            None,
            mlflow.pyfunc,
            registered_model_name=name,
            run_id=run_id,
            model_id=logged.model_id,
            tags=facts,
            loader_module=f"{PACKAGE}.pyfunc",
            data_path=str(data),
            code_paths=_code(Path(folder) / "code"),
            signature=signature(),
            pip_requirements=[f"{package}=={metadata.version(package).split('+')[0]}" for package in _PACKAGES],
        )
    return str(info.registered_model_version)


def register_weights(
    tracking_uri: str, name: str, weights: str | os.PathLike, config_files: Sequence[str | os.PathLike] = ()
) -> str:
    """Register a weights file, such as a shipped one, that is of no tracked run; returns the version.

    ``config_files`` are the configs after ``inference.json`` that the weights need. InputError when they do not fit, or
    MLflow does not take the model.
    """
    settings = read_settings(config_files)
    check(weights, settings)
    uri = checked_uri(tracking_uri)
    client = connect(uri)
    with one_line(name, uri):
        return log_model(client, uri, weights, settings, name, experiment=experiment_id(client, uri, NAME))


def _code(folder: Path) -> list[str]:
    """Copies of this package and of what it reads beside its weights."""
    package = Path(__file__).resolve().parents[1]
    parts = {PACKAGE: package}
    if package not in BUNDLE.parents:
        parts |= {name: BUNDLE / name for name in ("configs", "models")}
    ignored = shutil.ignore_patterns("__pycache__", "*.pt")
    return [str(shutil.copytree(source, folder / name, ignore=ignored)) for name, source in parts.items()]


@contextmanager
def _default_uri(uri: str) -> Iterator[None]:
    """MLflow's functions that take no client go to this URI."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # sets the variable, too
