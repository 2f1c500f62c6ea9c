"""What a package runs; the same as ``python app.py``."""

import sys

from app import main

sys.exit(main())
