"""A device that is not there: tensors that say they lie on it, and are computed on the CPU.

It stands in for CUDA where none is at hand. An operator on tensors of both devices raises, as
CUDA's would, and `waits` collects what would make the program wait for a GPU. Generators and
bfloat16 are not of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("pretend")
DEVICE = torch.device("pretend:0")
COPIES = ("aten._to_copy.default", "aten.copy_.default")
INDEXING = ("aten.index.Tensor", "aten.index_put_.default", "aten._index_put_impl_.default")
WAITING = ("aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default")
waits: list[str] = []


class There(torch.Tensor):
    """A tensor on the device; `here` holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> There:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )
        self.here = here
        return self

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, other: There) -> None:
        self.here = other.here

    def tolist(self) -> list:
        waits.append("tolist")
        return self.here.tolist()

    def data_ptr(self) -> int:
        raise AssertionError("the address of a device's memory, for a CPU")

    def __deepcopy__(self, memo: dict[int, Any]) -> There:
        copy = There(self.here.clone()).requires_grad_(self.requires_grad)
        copy._is_param = getattr(self, "_is_param", False)
        memo[id(self)] = copy
        return copy

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Machine(TorchDispatchMode):
    """With it, the device exists."""

    def __enter__(self) -> Machine:
        waits.clear()
        # New parameters for a network that moves: a CPU's can't be made to lie there.
        self.before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        torch.__future__.set_overwrite_module_params_on_conversion(self.before)
        super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    name, (flat, _) = str(func), tree_flatten((args, kwargs))
    tensors = [t for t in flat if isinstance(t, torch.Tensor)]
    there = [t for t in tensors if isinstance(t, There)]
    wanted = kwargs.get("device")
    goes_there = bool(there) if wanted is None else torch.device(wanted).type == DEVICE.type
    if name in (*INDEXING, "aten.copy_.default"):
        goes_there = isinstance(args[0], There)
    if name in INDEXING:
        # An index of the CPU is copied first; nothing else is.
        other = [args[0], *args[2:3]]
        mixed = there and not all(isinstance(t, There) for t in other if t.dim())
    else:
        # A number (a tensor of no dimension) of the CPU goes with tensors of either.
        mixed = there and any(t.dim() for t in tensors if not isinstance(t, There))
    if mixed and name not in COPIES:
        raise RuntimeError(f"{name}: tensors on {DEVICE.type} and on the CPU")
    if goes_there and name in INDEXING and any(t.dtype == torch.bool for t in tensors):
        waits.append(f"{name} with a mask")
    source = args[1] if name == "aten.copy_.default" else args[0] if args else None
    leaves = name in COPIES and isinstance(source, There) and not goes_there
    if leaves or (name in WAITING and there):
        waits.append(name)
    here = func(*tree_map(_here, args), **tree_map(_here, kwargs))
    # What an operator changed in place is the same object afterwards.
    known = {id(t.here): t for t in there}

    def back(t: Any) -> Any:
        if not isinstance(t, torch.Tensor):
            return t
        return known[id(t)] if id(t) in known else There(t) if goes_there else t

    return tree_map(back, here)


def _empty(size, stride, *, dtype=None, **_):
    return There(torch.empty_strided(size, stride, dtype=dtype))


def _copy(source, to, non_blocking=False):
    to.here.copy_(source)


# torch.tensor and torch.as_tensor go past modes.
beside = torch.library.Library("aten", "IMPL")
beside.impl("empty_strided", _empty, "PrivateUse1")
beside.impl("_copy_from", _copy, "PrivateUse1")


def _here(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.here if isinstance(value, There) else value
