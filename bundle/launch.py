"""Entry point of the command ``avsm``, from an installation or from this folder (``python launch.py``).

The bundle is a folder in MONAI's layout, whose configs import ``scripts.…``. So the folder itself goes on the path, in
front, and its code is known by that one name only.
"""

import sys
from pathlib import Path


def main() -> int:
    """Run the command line; returns the exit status."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from scripts.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
