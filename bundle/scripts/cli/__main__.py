"""``python -m scripts.cli`` from the bundle's folder."""

import sys

from .main import main

sys.exit(main())
