#!/bin/sh
# An MLflow database whose making was interrupted can never be opened again.
# Opens a client on a new SQLite database in a process that is killed after a while, then opens the database again; at
# most forty times, each with a new database and another while.
# One expects that the second client makes the tables or goes on with them. Often it raises "duplicate column name" or
# "table ... already exists", as does every later one: each of the steps that make the tables is undone by no one, and
# repeated. A training that was killed in its first seconds cannot be started again in its folder. Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q mlflow==3.17.2
export MLFLOW_DISABLE_TELEMETRY=true
cat > trial.py <<'PYTHON'
import multiprocessing
import os
import signal
import sys
import time

import mlflow
import mlflow.store.tracking.sqlalchemy_store
from mlflow import MlflowClient


def open_store(name, answer=None):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        MlflowClient(tracking_uri=f"sqlite:///{name}").search_experiments()
    except Exception as error:
        answer.put(str(error).splitlines()[0])
    else:
        if answer is not None:
            answer.put(None)


fork = multiprocessing.get_context("fork")
start = time.perf_counter()
whole = fork.Process(target=open_store, args=("whole.db",))
whole.start()
whole.join()
lasts = time.perf_counter() - start
print(f"mlflow {mlflow.__version__}; a database is made in {lasts:.1f} s")
for trial in range(40):
    name, answer = f"{trial}.db", fork.SimpleQueue()
    process = fork.Process(target=open_store, args=(name,))
    process.start()
    time.sleep(lasts * (0.2 + 0.7 * trial / 40))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    for _ in range(2):
        again = fork.Process(target=open_store, args=(name, answer))
        again.start()
        told = answer.get()
        again.join()
    if told is not None:
        print(f"as described: killed after {lasts * (0.2 + 0.7 * trial / 40):.1f} s, opened twice: {told}")
        sys.exit()
sys.exit("every database could be opened again")
PYTHON
env/bin/python trial.py
