"""SimpleCNN up to its last layer as one compiled step on CPUs.

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
THREADS = "-fopenmp"  # PyTorch's own threads, where it uses GNU's; not all compilers know it
FUNCTIONS = {"hidden": 13, "hidden_backward": 20}  # how many tensors each takes
FEATURES = 84
PART = 16  # images at a time: what is kept of them fits a core's cache
DROPPED = 120 + FEATURES  # hidden values of an image that dropout may drop: of both layers


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None where they can't be compiled."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        compiler = ["cc"]
    # One file for each machine: a folder may be shared, and -march=native is this one's.
    facts = (SOURCE.read_text(), compiler, FLAGS, THREADS, platform.node(), platform.machine())
    name = hashlib.sha256(str(facts).encode()).hexdigest()[:12]
    file = ROOT / "data" / f"kernels-{name}.so"
    try:
        if not file.exists():
            with replacing(file) as unfinished:
                command = [*compiler, *FLAGS, SOURCE, "-o", unfinished]
                if subprocess.run([*command, THREADS], capture_output=True).returncode:
                    subprocess.run(command, check=True, capture_output=True)
        compiled = ctypes.CDLL(str(file))
    except (OSError, subprocess.CalledProcessError):
        return None
    for name, tensors in FUNCTIONS.items():
        getattr(compiled, name).argtypes = [ctypes.c_int] * 2 + [ctypes.c_void_p] * tensors
    return compiled


def hidden(
    x: torch.Tensor, kept: torch.Tensor | None, *parameters: torch.Tensor
) -> torch.Tensor:
    """SimpleCNN's features (N, 84) of images x (N, 3, 32, 32) in [-1, 1].

    kept: what dropout multiplies the two hidden layers by, (N, 120 + 84), or None. parameters:
    weight and bias of each of the four layers. With those of K networks, (K, ...) each, the
    features are (K, N, 84), of images (K, N, 3, 32, 32), or of the same for all, and kept is
    (K, N, 204).
    """
    first = parameters[0]
    fits = (
        x.shape[-3:] == (3, 32, 32)
        and not (x.requires_grad and x.dim() < first.dim())  # their gradients would add up
        and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (x, first))
        and not torch.is_autocast_enabled("cpu")
    )
    if fits and library():
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
        return Hidden.apply(x, kept, trained, *parameters)
    if first.dim() == 5:
        stack = len(first)
        kept = [None] * stack if kept is None else kept
        each = zip(x.expand(stack, *x.shape[-4:]), kept, *parameters, strict=True)
        return torch.stack([plain(*one) for one in each])
    return plain(x, kept, *parameters)


def plain(
    x: torch.Tensor, kept: torch.Tensor | None, *parameters: torch.Tensor
) -> torch.Tensor:
    """`hidden` of one network by PyTorch's operators."""
    conv1, conv2, fc1, fc2 = zip(parameters[::2], parameters[1::2], strict=True)
    for layer in (conv1, conv2):
        # The larger of two values and then ReLU is ReLU and then the larger, on a quarter.
        x = F.relu(F.max_pool2d(F.conv2d(x, *layer), 2))
    kept1, kept2 = (1, 1) if kept is None else kept.split([DROPPED - FEATURES, FEATURES], -1)
    x = F.relu(F.linear(x.flatten(1), *fc1)) * kept1
    return F.relu(F.linear(x, *fc2)) * kept2


class Hidden(torch.autograd.Function):
    """`hidden` by the compiled functions. trained: whether parameters want gradients."""

    @staticmethod
    def forward(ctx, x, kept, trained, *parameters):
        # Both convolutions' weights lie in memory as images do.
        parameters = [channels_last(p) if p.dim() > 3 else p for p in parameters]
        x = images(x, parameters[0])
        shape = x.shape[:-3]  # (N,) or (K, N)
        saved = torch.empty(*shape, library().saved_floats())
        places = torch.empty(*shape, library().saved_places(), dtype=torch.int8)
        out = torch.empty(*shape, FEATURES)
        # A parameter's gradient is one sum, over all images.
        ctx.trained, ctx.part = trained, x.shape[-4] if trained else PART
        call("hidden", ctx.part, x, *parameters, kept, saved, places, out)
        ctx.save_for_backward(x, kept, *parameters, saved, places, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, kept, *parameters, saved, places, out = ctx.saved_tensors
        gx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        gradients = [torch.empty_like(p) if ctx.trained else None for p in parameters]
        call(
            *("hidden_backward", ctx.part),
            *(x, *parameters[::2], kept, saved, places, out, g.contiguous()),
            *(torch.empty_like(saved), *gradients, gx),
        )
        return gx, None, None, *gradients


def images(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x as kernels.c reads it: channels last, and one for each network of a stack."""
    x = channels_last(x)
    return x.expand(*weight.shape[:-4], *x.shape[-4:])


def channels_last(t: torch.Tensor) -> torch.Tensor:
    """t (..., C, H, W), in memory as (..., H, W, C)."""
    if t.dim() == 4:
        return t.contiguous(memory_format=torch.channels_last)
    return t.movedim(-3, -1).contiguous().movedim(-1, -3)


def call(name: str, part: int, x: torch.Tensor, *others: torch.Tensor | None) -> None:
    """The compiled function, for one network or, with x (K, N, C, H, W), for each of K.

    part: how many images go through all layers together."""
    function = getattr(library(), name)
    for k in range(len(x) if x.dim() == 5 else 1):
        function(x.shape[-4], part, *(pointer(t, k) for t in (x, *others)))


def pointer(t: torch.Tensor | None, k: int = 0) -> int | None:
    """Where row k of a tensor begins in memory."""
    return None if t is None else t.data_ptr() + k * t.stride(0) * t.element_size()
