"""The plain part of the MONAI Deploy app: everything but the operators, and without a need of the SDK.

`find_pair` → `unpack_model` → `register` → `write_dicom`. The bundle is imported (as ``scripts``), never the other way.
"""

from .bundle import find_bundle
from .process import prepare_process

prepare_process()
find_bundle()
