"""The operators: thin, as all work is done by `avsm_deploy`. A pair passes through each of them once."""

from __future__ import annotations

from pathlib import Path

from avsm_deploy.model import Model
from avsm_deploy.outputs import ITK, write_dicom
from avsm_deploy.pair import find_pair
from avsm_deploy.registration import register
from avsm_deploy.request import load_request
from monai.deploy.core import ExecutionContext, InputContext, Operator, OperatorSpec, OutputContext

__all__ = ["DicomWriterOperator", "PairLoaderOperator", "RegistrationOperator"]


class PairLoaderOperator(Operator):
    """Finds the fixed and the moving image in the input folder.

    Named outputs: ``pair`` (`Pair`), ``request`` (`Request`), ``images`` (two paths that the bundle reads).

    Args:
        fragment: the application.
        input_folder: with a study or two image files.
        work: a folder for links to the files of each series, kept while the application runs.
    """

    def __init__(self, fragment, *args, input_folder: Path, work: Path, **kwargs) -> None:
        self.input_folder, self.work = input_folder, work
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the outputs."""
        for name in ("pair", "request", "images"):
            spec.output(name)

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Find the images."""
        request = load_request(self.input_folder)
        pair = find_pair(self.input_folder, request)
        op_output.emit(pair, "pair")
        op_output.emit(request, "request")
        op_output.emit(pair.paths(self.work), "images")


class RegistrationOperator(Operator):
    """Registers by the bundle's ``inference.json`` with the model's weights, and writes the ITK files.

    Named inputs: ``request``, ``images``. Named output: ``registered``, the two images when their files are written.

    Args:
        fragment: the application.
        model: the weights.
        folder: gets the folder ``itk``.
    """

    def __init__(self, fragment, *args, model: Model, folder: Path, **kwargs) -> None:
        self.model, self.folder = model, folder
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare inputs and output."""
        spec.input("request")
        spec.input("images")
        spec.output("registered")

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Register."""
        request, images = op_input.receive("request"), op_input.receive("images")
        register(*images, self.model, request.settings, self.folder / ITK)
        op_output.emit(images, "registered")


class DicomWriterOperator(Operator):
    """Writes the moved series and the registration objects; nothing where the images were no DICOM.

    Named inputs: ``pair``, ``registered``.

    Args:
        fragment: the application.
        folder: holds ``itk`` and gets the DICOM files.
    """

    def __init__(self, fragment, *args, folder: Path, **kwargs) -> None:
        self.folder = folder
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the inputs."""
        spec.input("pair")
        spec.input("registered")

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Write."""
        pair, images = op_input.receive("pair"), op_input.receive("registered")
        if pair.is_dicom:
            write_dicom(pair, images, self.folder)
