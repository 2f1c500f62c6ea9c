"""The command line ``avsm``: one module a subcommand, which reads options and files and lets other rooms do the work.

A subcommand's module offers ``add_parser(subparsers)`` and ``run(options) -> int`` and is named in `main.COMMANDS`. It
imports what is heavy in ``run`` alone, so that ``avsm --help`` answers at once.
"""

from .main import main

__all__ = ["main"]
