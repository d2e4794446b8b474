"""A device that is not there: tensors that say they lie on it, and are computed on the CPU.

It stands in for CUDA where none is at hand. An operator on tensors of both devices raises, as
CUDA's would, `waits` collects what would make the program wait for a GPU, and `ran` what ran.
`cuda` has its graphs. bfloat16 is not of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map


class Backend(backend_registration._DummyBackendModule):
    """What PyTorch asks any device for, also of tests that know nothing of this one."""

    def get_rng_state(self, device: int) -> torch.Tensor:
        return torch.empty(0)

    def set_rng_state(self, state: torch.Tensor, device: int) -> None:
        pass


backend_registration._setup_privateuseone_for_python_backend("pretend", Backend())
DEVICE = torch.device("pretend:0")
COPIES = ("aten._to_copy.default", "aten.copy_.default")
INDEXING = ("aten.index.Tensor", "aten.index_put_.default", "aten._index_put_impl_.default")
WAITING = ("aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default")
waits: list[str] = []
ran: set[str] = set()  # the operators
capturing: list[CUDAGraph] = []
drawn_from: set[int] = set()
stuck: set[int] = set()  # generators in the middle of a capture that failed


class Generator(torch.Generator):
    """A generator that says it lies on the device, and draws as the CPU's do."""

    device = DEVICE

    def __init__(self) -> None:
        # PyTorch makes another object of it wherever it is passed on, but of the same address.
        drawn_from.add(self._cdata)
        stuck.discard(self._cdata)

    def clone_state(self) -> Generator:
        clone = Generator()
        clone.set_state(self.get_state())
        return clone

    def graphsafe_set_state(self, state: Generator) -> None:
        stuck.discard(self._cdata)
        self.set_state(state.get_state())


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
        ran.clear()
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
    ran.add(name.split(".")[1])
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
    generator = kwargs.get("generator")
    if goes_there and generator is not None and generator._cdata not in drawn_from:
        raise RuntimeError(f"{name}: a generator of the CPU")
    if generator is not None and generator._cdata in stuck and not capturing:
        raise RuntimeError(f"{name}: its generator is in the middle of a capture")
    source = args[1] if name == "aten.copy_.default" else args[0] if args else None
    # Memory that isn't pinned is waited for in both directions.
    crosses = name in COPIES and isinstance(source, There) != goes_there
    if crosses or (name in WAITING and there):
        waits.append(name)
        if capturing:
            raise RuntimeError(f"{name}: a capture can't wait")
    args_here, kwargs_here = tree_map(_here, args), tree_map(_here, kwargs)
    if capturing and goes_there:
        if any(t.dim() for t in tensors if not isinstance(t, There)):
            raise RuntimeError(f"{name}: a capture can't read the CPU's memory")
        here = capturing[-1].record(func, args_here, kwargs_here)
    else:  # what is done on the CPU, a recording does not know of
        here = func(*args_here, **kwargs_here)
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


class CUDAGraph:
    """Operators as they were recorded, run again on the tensors that they had then."""

    def __init__(self) -> None:
        self.recorded: list[tuple] = []
        self.generators: list[torch.Generator] = []
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)

    def record(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        # Each look at a generator makes another object of it.
        known = [generator._cdata for generator in self.generators]
        if "generator" in kwargs and kwargs["generator"]._cdata not in known:
            raise RuntimeError(f"{func}: its generator is not registered")
        for t in tree_flatten((args, kwargs))[0]:
            if isinstance(t, torch.Tensor):
                self.before.setdefault(id(t), (t, t.clone()))
        results = func(*args, **kwargs)
        self.recorded.append((func, args, kwargs, results))
        return results

    def replay(self) -> None:
        for func, args, kwargs, results in self.recorded:
            again = tree_flatten(func(*args, **kwargs))[0]
            for old, new in zip(tree_flatten(results)[0], again, strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@contextmanager
def graph(recorder: CUDAGraph) -> Iterator[None]:
    """As torch.cuda.graph: nothing that the block does happens but the recording."""
    states = [g.get_state() for g in recorder.generators]
    capturing.append(recorder)
    try:
        yield
    except RuntimeError:
        stuck.update(generator._cdata for generator in recorder.generators)
        raise RuntimeError("the capture failed")  # noqa: B904, as PyTorch does
    finally:
        capturing.pop()
        # The earliest last, as views of what was seen before are seen with its changes.
        for t, before in reversed(recorder.before.values()):
            if not torch.equal(t, before):
                t.copy_(before)
        for generator, state in zip(recorder.generators, states, strict=True):
            generator.set_state(state)


stream = SimpleNamespace(wait_stream=lambda other: None)
cuda = SimpleNamespace(
    CUDAGraph=CUDAGraph,
    graph=graph,
    Stream=lambda: stream,
    stream=nullcontext,
    current_stream=lambda: stream,
)
