"""The plain part of the MONAI Deploy app: everything but the operators, and without a need of the SDK.

`find_pair` → `unpack_model` → `register` → `write_dicom`. The bundle is imported (as ``scripts``), never the other way.
"""

from .bundle import add_bundle_to_path
from .process import prepare_process

prepare_process()
add_bundle_to_path()
