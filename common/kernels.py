"""SimpleCNN's convolution, ReLU and pooling as one compiled step on CPUs.

kernels.c is compiled once for this machine, into `data/`. Where no C compiler is found, and for
all that the compiled step isn't written for, PyTorch's own operators do the same.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shlex
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from common.options import ROOT
from common.results import replacing

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")
SHAPES = {(3, 32, 32), (16, 14, 14)}  # of an image, one for each pair of functions in kernels.c
WEIGHTS = (16, 5, 5)  # channels out, kernel height and width


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None where they can't be compiled."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        compiler = ["cc"]
    # One file for each machine: a folder may be shared, and -march=native is this one's.
    facts = f"{SOURCE.read_text()}{compiler}{FLAGS}{platform.node()}{platform.machine()}"
    name = hashlib.sha256(facts.encode()).hexdigest()[:12]
    file = ROOT / "data" / f"kernels-{name}.so"
    try:
        if not file.exists():
            with replacing(file) as unfinished:
                subprocess.run(
                    [*compiler, *FLAGS, SOURCE, "-o", unfinished],
                    check=True,
                    capture_output=True,
                )
        return ctypes.CDLL(str(file))
    except (OSError, subprocess.CalledProcessError):
        return None


def conv_relu_pool(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """max_pool2d(relu(conv2d(x, weight, bias)), 2): (N, C, H, W) to (N, O, h, w).

    With the weights (K, O, C, 5, 5) and biases (K, O) of K networks: (K, N, O, h, w), of
    images (K, N, C, H, W), or of the same (N, C, H, W) for all.
    """
    channels = x.shape[-3]
    fits = (
        x.shape[-3:] in SHAPES
        and weight.shape[-4:] == (WEIGHTS[0], channels, *WEIGHTS[1:])
        and not (x.requires_grad and (channels == 3 or x.dim() < weight.dim()))
        and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (x, weight, bias))
        and not torch.is_autocast_enabled("cpu")
    )
    if fits and library():
        return ConvReLUPool.apply(x, weight, bias)
    if weight.dim() == 5:
        each = zip(x.expand(len(weight), *x.shape[-4:]), weight, bias, strict=True)
        return torch.stack([conv_relu_pool(*one) for one in each])
    # The larger of two values and then ReLU is ReLU and then the larger, on a quarter of them.
    return F.relu(F.max_pool2d(F.conv2d(x, weight, bias), 2))


class ConvReLUPool(torch.autograd.Function):
    """`conv_relu_pool` by the compiled functions."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        x, weight = channels_last(x), channels_last(weight)
        half = (x.shape[-1] - WEIGHTS[1] + 1) // 2
        shape = (*weight.shape[:-4], x.shape[-4], half, half, WEIGHTS[0])
        out = torch.empty(shape).movedim(-1, -3)
        place = torch.empty(shape, dtype=torch.int8).movedim(-1, -3)
        _call("forward", x, weight, bias, out, place)
        ctx.save_for_backward(x, weight, place)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, weight, place = ctx.saved_tensors
        # The first layer's images want no gradient, and it writes none.
        gx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        gw, gb = torch.empty_like(weight), weight.new_empty(weight.shape[:-3])
        _call("backward", x, weight, place, channels_last(g), gw, gb, gx)
        return gx, gw, gb


def channels_last(t: torch.Tensor) -> torch.Tensor:
    """t (..., C, H, W), in memory as (..., H, W, C)."""
    if t.dim() == 4:
        return t.contiguous(memory_format=torch.channels_last)
    return t.movedim(-3, -1).contiguous().movedim(-1, -3)


def _call(
    name: str, x: torch.Tensor, weight: torch.Tensor, *others: torch.Tensor | None
) -> None:
    """The compiled function, for one network or for each of a stack."""
    function = getattr(library(), f"{name}_{x.shape[-3]}")
    stacked = weight.dim() == 5
    for k in range(len(weight) if stacked else 1):
        pointers = []
        for t in (x, weight, *others):
            if t is None:
                pointers.append(None)
                continue
            shared = not stacked or (t is x and t.dim() == 4)
            skipped = 0 if shared else k * t.stride(0) * t.element_size()
            pointers.append(ctypes.c_void_p(t.data_ptr() + skipped))
        function(x.shape[-4], *pointers)
