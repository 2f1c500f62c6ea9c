"""AVSM as a MONAI Deploy application: ``python app.py -i IN -o OUT -m models``; see README.md."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from avsm_deploy.model import NAME, Model, unpack_model
from avsm_deploy.outputs import staged, summary
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, TorchScriptModel
from monai.deploy.exceptions import ItemNotExistsError
from operators import DicomWriterOperator, PairLoaderOperator, RegistrationOperator

from scripts.errors import InputError, end_on_sigterm, input_error


class AVSMApp(Application):
    """Finds a pair, registers it, writes the results.

    Args:
        input_folder: with a study or two image files.
        model: the weights.
        output: folder that gets the results.
        work: folder for files that nobody needs afterwards.
    """

    def __init__(self, input_folder: Path, model: Model, output: Path, work: Path) -> None:
        self.input_folder, self.registration_model, self.output, self.work = input_folder, model, output, work
        super().__init__([])

    def compose(self) -> None:
        """Connect the operators."""
        once = CountCondition(self, 1)
        loader = PairLoaderOperator(self, once, input_folder=self.input_folder, work=self.work, name="loader")
        registration = RegistrationOperator(
            self, model=self.registration_model, folder=self.output, name="registration"
        )
        writer = DicomWriterOperator(self, folder=self.output, name="writer")
        self.add_flow(loader, registration, {("request", "request"), ("images", "images")})
        self.add_flow(loader, writer, {("pair", "pair")})
        self.add_flow(registration, writer, {("registered", "registered")})


def model_file(context: AppContext) -> Path:
    """The TorchScript file that the SDK has found in the models folder.

    Args:
        context: of the application.

    Raises:
        InputError: when there is none.
    """
    found = context.models
    try:
        model = found if isinstance(found, TorchScriptModel) else found.get(NAME) if found else None
    except ItemNotExistsError:
        model = None
    if not isinstance(model, TorchScriptModel):
        raise InputError(
            f"{context.model_path}: holds no TorchScript {NAME}/model.ts, alone in its folder; "
            "write one with MONAI's ckpt_export as the README says, and give its folder with -m"
        )
    return Path(model.path)


def _check_paths(arguments: list[str]) -> None:
    """Say in one line that a path is missing, before the SDK's parser says it below a page of usage."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-i", "--input")
    parser.add_argument("-m", "--model")
    options, _ = parser.parse_known_args(arguments)
    for name, path, mend in (
        ("input", options.input, "give the folder with the study or the two image files"),
        ("model", options.model, f"give the models folder, which holds {NAME}/model.ts"),
    ):
        if path is not None and not Path(path).exists():
            raise InputError(f"{path}: --{name} does not exist; {mend}")


def run(argv: list[str]) -> None:
    """Run the application.

    Args:
        argv: the program and its arguments, as the SDK has them.

    Raises:
        InputError: for input, models or settings that cannot be used; perhaps as a cause, see ``input_error``.
    """
    _check_paths(argv[1:])
    context = Application.init_app_context(argv)
    with tempfile.TemporaryDirectory(prefix="avsm-") as work, staged(Path(context.output_path)) as output:
        model = unpack_model(model_file(context), Path(work) / "model")
        AVSMApp(Path(context.input_path), model, output, Path(work)).run()
    print(summary(Path(context.output_path)))


def main() -> int:
    """Run with the process's arguments; returns the exit status, 1 after one line on what is wrong with the input."""
    # The level at which the SDK tells of its options; -l says otherwise.
    quiet = [] if {"-l", "--log-level"} & set(sys.argv) else ["-l", "WARN"]
    end_on_sigterm()
    try:
        run([*sys.argv, *quiet])
    except Exception as error:
        bad_input = input_error(error)
        if bad_input is None:
            raise
        print(f"error: {str(bad_input).strip().splitlines()[-1]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
