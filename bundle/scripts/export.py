"""Export: the network as TorchScript and ONNX, by MONAI's own tools, and the proof that both are the same network.

Run from the bundle's folder: ``python -m scripts.export --output_dir FOLDER``; ``make export`` does.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ckpt_export, onnx_export
from torch import Tensor, nn

from .errors import InputError
from .networks import load_weights
from .settings import network_file
from .storage import make_output_dir
from .synthetic import GeneratedPairs, KneePhantom, generated_pairs

try:
    import onnx
    import onnxruntime
except ImportError as error:
    raise ImportError(f"{error.name} is missing; export needs it: pip install 'avsm[export]'") from error

BUNDLE = Path(__file__).resolve().parents[1]
META = BUNDLE / "configs" / "metadata.json"
CONFIG = BUNDLE / "configs" / "inference.json"
TRAINING = BUNDLE / "configs" / "train.json"
TORCHSCRIPT, ONNX = "model.ts", "model.onnx"
# GridSample of volumes begins here.
OPSET = 20
# The map in normalised coordinates, at most 0.003 voxels of the default grid; an intensity differs by that times its
# gradient, which is steep in such units.
TOLERANCES = {"map": 1e-4, "moved": 1e-3}


def example(shape: Sequence[int], count: int = 1) -> Tensor:
    """Pairs of phantom knees as the network's input, ``(B, 2, D, H, W)``, channels [moving, fixed], in [0, 1]."""
    pairs = GeneratedPairs(generated_pairs(count), KneePhantom(shape))
    rows = [torch.cat([torch.as_tensor(pairs[k][role]) for role in ("moving", "fixed")]) for k in range(count)]
    return torch.stack(rows).as_subclass(Tensor).float().clamp(0, 1)


def differences(output: Tensor, expected: Tensor) -> dict[str, float]:
    """Largest absolute difference of the moved image (intensity) and of the map (normalised coordinates).

    Both are ``(B, 4, D, H, W)``, of an exported model and of the module.
    """
    error = (output - expected).abs()
    return {"moved": error[:, :1].max().item(), "map": error[:, 1:].max().item()}


def compare_torchscript(path: Path, network: nn.Module, image: Tensor) -> dict[str, float]:
    """`differences` of a TorchScript file from the module, for an image ``(B, 2, D, H, W)``."""
    with torch.no_grad():
        return differences(torch.jit.load(str(path))(image), network(image))


def compare_onnx(path: Path, network: nn.Module, image: Tensor) -> dict[str, float]:
    """`differences` of an ONNX file in ONNX Runtime from the module, for an image ``(B, 2, D, H, W)``."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (output,) = session.run(["pred"], {"image": image.numpy()})
    with torch.no_grad():
        return differences(torch.from_numpy(output), network(image))


def export(
    output_dir: str | Path,
    config_files: Sequence[str | Path] = (),
    ckpt_path: str | Path | None = None,
    shape: Sequence[int] | None = None,
    **overrides: Any,
) -> dict[str, dict[str, float]]:
    """Write ``model.ts`` and ``model.onnx``, and compare both with the module; returns comparison → `differences`.

    Args:
        output_dir: folder, created if need be.
        config_files: configs after ``configs/inference.json`` and the network's file, such as another network's.
        ckpt_path: weights or checkpoint; None for the config's.
        shape: ``(D, H, W)`` that the ONNX model takes; None for the config's ``grid``, or, where the config leaves
            that to the field of view, for the grid of training.
        overrides: config id → value.

    Raises:
        InputError: for weights or settings that cannot be used.
        RuntimeError: when an exported model differs from the module by more than 1e-4.
    """
    folder = make_output_dir(output_dir)
    parser = ConfigParser()
    parser.read_config([str(CONFIG), str(network_file(config_files)), *map(str, config_files)])
    parser.update({"bundle_root": str(BUNDLE), **overrides})
    if ckpt_path is not None:
        parser["ckpt_path"] = str(ckpt_path)
    config = json.loads(json.dumps(parser.get(), default=str))
    if shape is None:
        shape = parser.get_parsed_content("grid") or _training_grid()
    shape = list(shape)
    if len(shape) != 3 or any(isinstance(size, bool) or not isinstance(size, int) or size < 8 for size in shape):
        raise InputError(f"shape={shape}: give three whole numbers from 8 on, or a config with such a grid")
    network = load_weights(parser.get_parsed_content("network_def"), parser.get_parsed_content("ckpt_path")).eval()
    if getattr(network, "features", None) is not None:
        raise InputError("network_def: has features, which guide an engine that no export holds; give another network")
    # The file is for other machines, whose paths are other ones.
    config.update(bundle_root=".", ckpt_path=ConfigParser.load_config_file(CONFIG)["ckpt_path"])
    with tempfile.TemporaryDirectory() as temporary:
        # What lies in the file is the config that was exported, under the name that MONAI Deploy looks for, and the
        # weights alone, whatever checkpoint they came from.
        inference, weights = Path(temporary) / CONFIG.name, Path(temporary) / "model.pt"
        inference.write_text(json.dumps(config, indent=4))
        torch.save(network.state_dict(), weights)
        given = {"ckpt_file": str(weights), "meta_file": str(META), "config_file": str(inference)}
        ckpt_export("network_def", filepath=str(folder / TORCHSCRIPT), **given)
        options = {"opset_version": OPSET, "input_names": ["image"], "output_names": ["pred"]}
        onnx_export(
            "network_def", filepath=str(folder / ONNX), input_shape=[1, 2, *shape], converter_kwargs=options, **given
        )
        _describe(folder / ONNX, inference)
    other = [size + step for size, step in zip(shape, (7, -3, 4), strict=True)]
    found = {
        f"TorchScript at {_text(shape)}": compare_torchscript(folder / TORCHSCRIPT, network, example(shape)),
        f"TorchScript at 2 × {_text(other)}": compare_torchscript(folder / TORCHSCRIPT, network, example(other, 2)),
        f"ONNX at {_text(shape)}": compare_onnx(folder / ONNX, network, example(shape)),
    }
    for name, values in found.items():
        if not all(values[part] <= most for part, most in TOLERANCES.items()):
            raise RuntimeError(f"{folder}: {name} differs from the module by {values}, more than {TOLERANCES}.")
    return found


def _training_grid() -> list[int]:
    parser = ConfigParser()
    parser.read_config(str(TRAINING))
    parser["bundle_root"] = str(BUNDLE)
    return parser.get_parsed_content("grid")


def _describe(path: Path, inference: Path) -> None:
    """Put metadata and config into the ONNX file, under the names that they have in the TorchScript."""
    model = onnx.load(str(path))
    onnx.helper.set_model_props(
        model, {META.name: META.read_text(encoding="utf-8"), inference.name: inference.read_text(encoding="utf-8")}
    )
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _text(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def main(arguments: Sequence[str] | None = None) -> int:
    """Export and tell the differences; returns the exit status."""
    parser = argparse.ArgumentParser(description="Export the network as TorchScript and ONNX, and compare both.")
    parser.add_argument("--output_dir", default="export", help="folder for model.ts and model.onnx")
    parser.add_argument("--config_file", nargs="*", default=[], help="configs after configs/inference.json")
    parser.add_argument("--ckpt_path", help="weights (default: models/model.pt)")
    parser.add_argument(
        "--shape", nargs=3, type=int, help="size of the ONNX model's input (default: the config's grid, or training's)"
    )
    options = parser.parse_args(arguments)
    try:
        found = export(options.output_dir, options.config_file, options.ckpt_path, options.shape)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{Path(options.output_dir) / TORCHSCRIPT} and {ONNX}; largest difference from the module:")
    for name, values in found.items():
        print(f"  {name}: moved image {values['moved']:.1e}, map {values['map']:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
