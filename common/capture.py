"""A training step as one CUDA graph: the host launches it once, not its operators one by one.

At batch 4 a GPU waits for the host, which takes longer to launch an operator than it to run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
from torch import cuda

Step = Callable[..., torch.Tensor]
DEVICES = ("cuda",)  # types of those that capture
WARM_UP = 3  # steps that run as they are, on a stream of their own, as PyTorch wants it


def captured(step: Step, generators: Sequence[torch.Generator]) -> Step:
    """`step`, captured when it has run a few times, and from then on replayed.

    step: a function of tensors on the device that changes others where they lie and returns
    one, which the next call overwrites. Whatever else it reads must stay what and where it is,
    but for the generators, which go on as ever. Called with tensors of other shapes than at
    first it runs as it is, and so it does where it can't be captured, which is said.
    """
    shapes: list[torch.Size] = []
    replay: Step | None = None
    calls = 0

    def run(*arguments: torch.Tensor) -> torch.Tensor:
        nonlocal replay, calls
        calls += 1
        if calls == 1:
            shapes.extend(t.shape for t in arguments)
        if [t.shape for t in arguments] != shapes:
            return step(*arguments)
        if calls <= WARM_UP:
            return _aside(step, arguments)
        if replay is None:
            try:
                replay = _replayed(step, arguments, generators)
            except RuntimeError as error:
                cause: BaseException = error
                while cause.__context__:  # that the capture failed is what the last one says
                    cause = cause.__context__
                reason = str(cause).splitlines()[0]
                print(
                    f"The step can't be captured, and is slower so: {reason}", file=sys.stderr
                )
                replay = step
        return replay(*arguments)

    return run


def _aside(step: Step, arguments: Sequence[torch.Tensor]) -> torch.Tensor:
    stream = cuda.Stream()
    stream.wait_stream(cuda.current_stream())
    with cuda.stream(stream):
        result = step(*arguments)
    cuda.current_stream().wait_stream(stream)
    return result


def _replayed(
    step: Step, arguments: Sequence[torch.Tensor], generators: Sequence[torch.Generator]
) -> Step:
    graph = cuda.CUDAGraph()
    before = [generator.clone_state() for generator in generators]
    for generator in generators:  # PyTorch's later releases find them by themselves
        graph.register_generator_state(generator)
    inputs = [t.clone() for t in arguments]
    try:
        # What records runs nothing. After a failure PyTorch's earlier releases leave the
        # graph's stream current, and generators that can't draw outside of the capture.
        with cuda.stream(cuda.current_stream()), cuda.graph(graph):
            result = step(*inputs)
    except RuntimeError:
        for generator, state in zip(generators, before, strict=True):
            generator.graphsafe_set_state(state)
        raise

    def replay(*arguments: torch.Tensor) -> torch.Tensor:
        for own, given in zip(inputs, arguments, strict=True):
            own.copy_(given)
        graph.replay()
        return result

    return replay
