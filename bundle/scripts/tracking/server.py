"""An MLflow server or database: which one, how long to wait for it, and what its errors mean."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from monai.utils import path_to_sqlite_uri, path_to_uri

from ..errors import InputError
from ..storage import atomic_path, claimed, make_output_dir

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow would try seven times, for minutes, while the run waits. The folder's own store has everything, so that trying
# later is as good. Usage data go to MLflow's makers by default; a program for medical images talks to the named server.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_STORE = "mlruns.db"
# What the tables of MLflow say to be made for a second time, when the first time has been cut short.
_HALF_MADE = ("already exists", "duplicate column name")
logger = logging.getLogger(__name__)


def sqlite_uri(output_dir: str | os.PathLike) -> str:
    """Tracking URI of the SQLite store ``mlruns.db`` in a folder, which is created if need be."""
    return path_to_sqlite_uri(str(make_output_dir(output_dir) / _STORE))


def own_store(output_dir: str | os.PathLike) -> str:
    """Tracking URI of the store in a folder, which is there afterwards and can be opened.

    A new one appears whole or not at all: one whose making was interrupted, MLflow could never open. One that a full
    disk or a crash has damaged is put aside with a warning, so that the run can go on. InputError when the folder can't
    be written to, or another run is writing to it.
    """
    uri, file = sqlite_uri(output_dir), Path(output_dir) / _STORE
    with claimed(output_dir):
        if file.is_file() and file.stat().st_size == 0:
            file.unlink()
        fault = _fault(file) if file.is_file() else None
        if fault is not None:
            names = (file.with_name(f"mlruns.damaged_{number}.db") for number in range(1, 1000))
            aside = next(name for name in names if not name.exists())
            for ending in ("-journal", "-wal", "-shm", ""):
                beside = Path(f"{file}{ending}")
                if beside.exists():
                    beside.rename(f"{aside}{ending}")
            logger.warning(f"warning: {file}: damaged ({fault}) and kept as {aside.name}; the run's log begins anew")
        if not file.is_file():
            with atomic_path(file) as temporary:
                connect(path_to_sqlite_uri(str(temporary))).search_experiments()
    return uri


def _fault(file: Path) -> str | None:
    """Why a store can never be opened; None where it can, or where the reason may pass."""
    from sqlalchemy.exc import DatabaseError

    try:
        with closing(sqlite3.connect(file)) as database:
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            return found
        # A copy is asked: what MLflow has once opened it keeps open, by its name.
        with tempfile.TemporaryDirectory() as folder:
            connect(path_to_sqlite_uri(shutil.copyfile(file, Path(folder) / _STORE)))
    except sqlite3.OperationalError:  # locked, no permission
        return None
    except sqlite3.DatabaseError as error:
        return str(error)
    except DatabaseError as error:
        return reason(error) if any(words in str(error) for words in _HALF_MADE) else None
    return None


def checked_uri(tracking_uri: str) -> str:
    """The tracking URI in force, of a server or database: ``MLFLOW_TRACKING_URI`` before the argument, as in MONAI.

    InputError for a folder (MLflow keeps no runs in plain files any more), or a password in the argument, which would
    be written into the run's config.
    """
    found = os.environ.get("MLFLOW_TRACKING_URI")
    uri = found or str(tracking_uri)
    if "://" not in uri or uri.startswith("file:"):
        raise InputError(
            f"tracking_uri={uri}: give http://HOST:PORT of an MLflow server, or sqlite:///PATH of a database"
        )
    if not found and urlsplit(uri).password is not None:
        raise InputError(
            f"tracking_uri={shown(uri)}: holds a password, which would be logged; set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or the whole as MLFLOW_TRACKING_URI"
        )
    return uri


def connect(uri: str) -> MlflowClient:
    """A client that waits for seconds, not minutes, unless the ``MLFLOW_HTTP_REQUEST_*`` variables say otherwise.

    A server is first asked by the first call; a database is opened, or created, now.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Id of an experiment, which is created if need be; a database keeps its artifacts in ``mlruns`` beside it.

    InputError when it is deleted, MlflowException when the server does not answer.
    """
    from mlflow.entities import LifecycleStage
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        path = uri.removeprefix("sqlite:///")
        location = None if path == uri else path_to_uri(Path(path).absolute().parent / "mlruns")
        try:
            # Without the tag the user interface offers tools for language models.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return client.create_experiment(name, artifact_location=location, tags=tags)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = client.get_experiment_by_name(name)  # another run was quicker
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        raise InputError(
            f"experiment_name={name}: deleted there; restore it (mlflow experiments restore), or give another name"
        )
    return experiment.experiment_id


@contextmanager
def one_line(what: str, uri: str) -> Iterator[None]:
    """InputError in one line that a user can act on, for whatever MLflow raises in the block that sends ``what``."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # requests, urllib3, SQLAlchemy and MLflow all have their own
        raise InputError(
            f"{what}: MLflow at {shown(uri)} does not take it ({reason(error)}); start the server, or correct the "
            "tracking URI, and run the same again"
        ) from error


def reason(error: BaseException | None) -> str:
    """The innermost cause of an error in a few words."""
    while error is not None and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return re.sub(r"\s+", " ", text.splitlines()[0])[:200]


def shown(uri: str) -> str:
    """A URI without user and password."""
    return re.sub(r"://[^/@]*@", "://", uri)
