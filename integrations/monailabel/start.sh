#!/bin/sh
# Start the server on a folder of images: start.sh STUDIES [further options of MONAI Label's start_server].
# PORT (8000) and AVSM_LABEL_PYTHON (the environment of `make label-env`) can be set.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
if [ $# -lt 1 ] || [ ! -d "$1" ]; then
    echo "error: ${1:-STUDIES}: not a folder; usage: $0 STUDIES [options]" >&2
    exit 2
fi
studies=$1
shift
python=${AVSM_LABEL_PYTHON:-$root/.venv-label/bin/python}
if [ ! -x "$python" ]; then
    echo "error: $python: no such program; run 'make label-env' in $root first" >&2
    exit 2
fi
export PYTHONPATH="$root/bundle:$here"
export MONAI_LABEL_SESSIONS=false MONAI_LABEL_AUTO_UPDATE_SCORING=false
# Loopback only: there are no users and no passwords. From elsewhere: ssh -L 8000:127.0.0.1:8000 HOST
exec "$python" -m monailabel.main start_server --app "$here" --studies "$studies" \
    --host 127.0.0.1 --port "${PORT:-8000}" --uvicorn_app avsm_label.server:app "$@"
