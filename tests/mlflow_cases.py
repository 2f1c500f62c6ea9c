"""MLflow databases in a moment: one is set up, the others are copies of it."""

import functools
import shutil
import tempfile
from pathlib import Path

from mlflow import MlflowClient


@functools.cache
def _template():
    path = Path(tempfile.mkdtemp(prefix="mlflow_template_")) / "mlruns.db"
    # Its tables take MLflow seconds.
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


def database(folder):
    """An empty database ``mlruns.db`` in a folder, which is created if need be; returns its URI."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder).resolve() / "mlruns.db"
    shutil.copyfile(_template(), path)
    return f"sqlite:///{path}"


def runs_of(uri, run_name=None, experiment="avsm"):
    """Client and the runs of a store, oldest first."""
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs(found.experiment_id, order_by=["attributes.start_time ASC"])
    return client, [run for run in runs if run_name is None or run.info.run_name == run_name]


def history(client, run, name):
    """Values of a metric by step; a step that is there twice fails."""
    points = client.get_metric_history(run.info.run_id, name)
    assert len({point.step for point in points}) == len(points), name
    return {point.step: point.value for point in points}


def artifacts(client, run, folder=None):
    """Names of a run's artifacts in a folder."""
    return sorted(Path(item.path).name for item in client.list_artifacts(run.info.run_id, folder))
