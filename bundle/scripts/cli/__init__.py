"""The command line ``avsm``: one module a subcommand, which reads options and files and lets other rooms do the work.

A subcommand's module is named in `main.COMMANDS` and offers ``HELP``, ``USAGE`` (how files are given, for hints),
``DESCRIPTION``, ``EPILOG``, ``add_options(parser)`` and ``run(options)``, which returns the exit status and raises
InputError for files and options that cannot be used. It imports what is heavy in ``run`` alone, so that
``avsm --help`` answers at once.
"""

from .main import main

__all__ = ["main"]
