"""Networks as ONNX files, for use without PyTorch."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.errors import InputError
from common.files import atomic_write
from common.networks.checkpoint import Checkpoint
from common.networks.external import cause

TOLERANCE = 1e-4  # of the logits, or of the largest of them if that is above 1
INSTALL = "pip install onnx onnxscript"


def export_onnx(checkpoint: Checkpoint, path: Path) -> str:
    """Write the checkpoint's network to `path` as ONNX, atomically; return a line about it.

    Input "images": float32 (N, 3, S, S) in [0, 1], for any N; the normalisation is in the
    network. Output "logits": (N, classes). The file's metadata hold "classes", the names in
    label order as a JSON list, and "image_size". Where ONNX Runtime is installed, its logits of
    random images must be those of the network, within TOLERANCE. Raises InputError if packages
    are missing, if the network can't be exported, and if the logits differ.
    """
    if path.suffix != ".onnx":  # such as the checkpoint itself
        raise InputError(f"--export {path}: give a name that ends in .onnx")
    try:
        import onnx
        import onnxscript  # noqa: F401  torch.onnx.export needs it
    except ImportError as error:
        raise InputError(f"--export {path}: {error.name} is missing; {INSTALL}") from None
    # Not .to("cpu") of the network itself, which others may use on its device.
    network, size = copy.deepcopy(checkpoint.network).cpu().eval(), checkpoint.image_size
    images = torch.rand((3, 3, size, size), generator=torch.Generator().manual_seed(0))
    model = _to_onnx(network, images[:2], path)
    metadata = {
        "classes": json.dumps(list(checkpoint.classes), ensure_ascii=False),
        "image_size": str(size),
    }
    onnx.helper.set_model_props(model, metadata)
    content = model.SerializeToString()
    checked = _check(content, network, images, path)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return checked


def _to_onnx(network: nn.Module, images: torch.Tensor, path: Path) -> Any:
    """Return the network as an onnx.ModelProto. images: an example of its input."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own deprecations
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("N")},),
            )
    except Exception as error:  # whatever PyTorch raises for operations that it can't export
        raise InputError(
            f"--export {path}: PyTorch can't export this network ({cause(error)}); take another"
        ) from None
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    return program.model_proto


@torch.no_grad()
def _check(content: bytes, network: nn.Module, images: torch.Tensor, path: Path) -> str:
    """Return a line that says whether ONNX Runtime gives the network's logits."""
    try:
        import onnxruntime
    except ImportError:
        return "not checked: for that, pip install onnxruntime"
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    expected = network(images).numpy()
    difference = float(np.abs(logits - expected).max())
    if not difference <= TOLERANCE * max(1, np.abs(expected).max()):
        raise InputError(
            f"--export {path}: ONNX Runtime's logits differ from PyTorch's by {difference:.3g};"
            " not written; try other versions of onnx and onnxruntime"
        )
    return f"its logits in ONNX Runtime are PyTorch's, up to {difference:.1g}"
