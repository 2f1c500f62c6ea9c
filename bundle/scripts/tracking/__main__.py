"""``python -m scripts.tracking``: copy runs to MLflow, register weights as a model."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from ..errors import InputError
from .model import register_weights
from .store import register_run, upload

_URI = "http://127.0.0.1:5000"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    send = commands.add_parser("upload", help="copy the runs of a folder to a server; again copies what is new")
    send.add_argument("run", metavar="RUN", help="output_dir of a training, an evaluation or a batch")
    register = commands.add_parser("register", help="register weights as a new version of a model")
    register.add_argument("name", metavar="NAME", help="of the registered model")
    source = register.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", metavar="RUN", help="output_dir of a tracked training: its model.pt")
    source.add_argument("--weights", metavar="FILE", help="a weights file")
    register.add_argument(
        "--config-file",
        metavar="FILE",
        action="append",
        default=[],
        help="with --weights: a config after inference.json that the weights need; may be repeated",
    )
    for command in (send, register):
        command.add_argument(
            "--tracking-uri",
            default=_URI,
            metavar="URI",
            help=f"the server, or sqlite:///PATH (default: {_URI}; MLFLOW_TRACKING_URI goes before)",
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 1 after bad input, told in one line on standard error."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if options.command == "upload":
            for run_id in upload(options.run, options.tracking_uri).values():
                print(f"{options.run}: run {run_id}")
        else:
            if options.run is not None:
                version = register_run(options.run, options.tracking_uri, options.name)
            else:
                version = register_weights(options.tracking_uri, options.name, options.weights, options.config_file)
            print(f"models:/{options.name}/{version}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
