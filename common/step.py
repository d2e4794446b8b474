"""SimpleCNN's training step on CPUs, without autograd but for the loss.

Autograd, allocation and Python take a small batch longer than the arithmetic.
"""

from __future__ import annotations

import torch
from torch import nn

from common.kernels import FEATURES, images, library, pointer
from common.models import Linear, SimpleCNN, linear, to_unit_range


def fits(network: nn.Module) -> bool:
    """Whether Step takes it: a SimpleCNN, all of it trained, on a CPU with a compiler."""
    return (
        isinstance(network, SimpleCNN)
        and all(p.requires_grad and p.device.type == "cpu" for p in network.parameters())
        and library() is not None
    )


class Step:
    """Forward and backward pass of a network, or of K stacked ones, in memory set up once.

    n: the most images of a step. Parameters and gradients are read and written where they lie,
    which is where `optimizers.flattened` has put them.
    """

    def __init__(self, network: SimpleCNN, n: int) -> None:
        self.network, self.hidden = network, network.hidden_parameters()
        self.stack = self.hidden[0].shape[:-4]  # () or (K,)
        self.saved = torch.empty(*self.stack, n * library().saved_floats())
        self.scratch = torch.empty_like(self.saved)
        self.places = torch.empty(*self.stack, n * library().saved_places(), dtype=torch.int8)
        # Memory that stays where it is, as each network's pointers.
        self.weights, self.gradients, self.memory = (
            [[pointer(t, k) for t in tensors] for k in range(self.stack.numel())]
            for tensors in (
                self.hidden,
                [p.grad for p in self.hidden],
                [self.saved, self.scratch, self.places],
            )
        )

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) or (K, N, classes) of float images (N, 3, 32, 32) in [0, 1], or
        of each network's own, (K, N, 3, 32, 32)."""
        x, kept = images(to_unit_range(x), self.hidden[0]), self.network.kept(x)
        n = x.shape[-4]
        out = torch.empty(*self.stack, n, FEATURES)
        for k, (saved, _, places) in enumerate(self.memory):
            own, own_kept, own_out = pointer(x, k), pointer(kept, k), pointer(out, k)
            library().hidden(n, n, own, *self.weights[k], own_kept, saved, places, own_out)
        self.inputs = x, kept, out
        last = self.network.last
        if isinstance(last, Linear):
            with torch.no_grad():
                self.leaf = linear(out, last.weight, last.bias)
            return self.leaf.requires_grad_()
        self.leaf = out.requires_grad_()
        return last(out)

    def backward(self, loss: torch.Tensor) -> None:
        """Write the gradients of a loss of these logits, or of losses' sum, to `grad`."""
        (x, kept, out), last = self.inputs, self.network.last
        n = x.shape[-4]
        # Of a number: PyTorch checks the shape of a gradient that it is given with SymPy, whose
        # import and use at every step take time.
        total = loss.sum()
        if isinstance(last, Linear):
            (g,) = torch.autograd.grad(total, self.leaf)
            with torch.no_grad():
                torch.matmul(g.mT, out, out=last.weight.grad)
                torch.sum(g, -2, out=last.bias.grad)
                g = g @ last.weight
        else:
            g, last.weight.grad[:] = torch.autograd.grad(total, [self.leaf, last.weight])
        g = g.contiguous()
        for k, (saved, scratch, places) in enumerate(self.memory):
            own, own_kept, own_out, own_g = (pointer(t, k) for t in (x, kept, out, g))
            library().hidden_backward(
                *(n, n, own, *self.weights[k][::2], own_kept, saved, places),
                *(own_out, own_g, scratch, *self.gradients[k], None),
            )
