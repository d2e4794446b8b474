"""The training step without autograd against autograd, through torch.nn's own modules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from common import kernels, models, optimizers
from common.step import Step, fits

X = torch.rand(2, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])


@pytest.fixture(autouse=True)
def _compiler():
    if kernels.library() is None:
        pytest.skip("needs a C compiler, and finds none")


def network(classifier, seed, dropout=0.5):
    arguments = {"classes": 3, "classifier": classifier, "dropout": dropout}
    return models.build("simple-cnn", arguments, seed).to(memory_format=torch.channels_last)


def by_autograd(network, x, y, kept):
    """The loss and gradients, with dropout as given."""
    w = dict(network.named_parameters())
    h = models.to_unit_range(x)
    for name in ("conv1", "conv2"):
        h = F.max_pool2d(F.relu(F.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"])), 2)
    h = F.relu(F.linear(h.flatten(1), w["fc1.weight"], w["fc1.bias"])) * kept[:, :120]
    h = F.relu(F.linear(h, w["fc2.weight"], w["fc2.bias"])) * kept[:, 120:]
    last = {name.removeprefix("fc3."): p for name, p in w.items() if name.startswith("fc3.")}
    loss = F.cross_entropy(functional_call(network.fc3, last, h), y)
    return loss, torch.autograd.grad(loss, list(network.parameters()))


def kept_by(seed, n, dropout=0.5):
    """What a generator of this seed has dropout keep at the first step."""
    drawn = torch.rand(n, 204, generator=torch.Generator().manual_seed(seed))
    return (drawn < 1 - dropout) / (1 - dropout)


def close(ours, theirs):
    assert theirs.abs().max() > 0
    return (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
@pytest.mark.parametrize("dropout", [0.5, 0.25])
@pytest.mark.parametrize("n", [5, 3])
def test_gradients_equal_those_of_autograd(classifier, dropout, n):
    expected_loss, expected = by_autograd(
        network(classifier, 0, dropout), X[0, :n], Y[0, :n], kept_by(7, n, dropout)
    )
    ours = network(classifier, 0, dropout).train()
    ours.generators = [torch.Generator().manual_seed(7)]
    optimizers.flattened(list(ours.parameters()))
    step = Step(ours, 5)
    for _ in range(2):  # whatever a step has left behind does no harm to the next
        ours.generators[0].manual_seed(7)
        loss = F.cross_entropy(step.logits(X[0, :n]), Y[0, :n])
        step.backward(loss)
    assert torch.allclose(loss, expected_loss, atol=1e-6)
    for p, g in zip(ours.parameters(), expected, strict=True):
        assert close(p.grad, g)


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_stack_has_the_gradients_of_each(classifier, shared):
    x = X[0] if shared else X
    y = Y[0].expand(2, 5) if shared else Y
    stack = models.stacked([network(classifier, seed) for seed in (0, 1)]).train()
    stack.generators = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    optimizers.flattened(list(stack.parameters()), 2)
    step = Step(stack, 5)
    logits = step.logits(x)
    losses = [F.cross_entropy(*one) for one in zip(logits, y, strict=True)]
    step.backward(torch.stack(losses))
    for k in range(2):
        images = x if shared else x[k]
        _, expected = by_autograd(network(classifier, k), images, y[k], kept_by(7 + k, 5))
        for p, g in zip(stack.parameters(), expected, strict=True):
            assert close(p.grad[k], g)


@pytest.mark.parametrize(
    "other",
    [
        lambda: models.build("resnet9", {"classes": 3}),
        lambda: network("linear", 0).to("meta"),
        lambda: network("linear", 0).requires_grad_(False),
    ],
)
def test_it_leaves_other_networks_to_autograd(other):
    assert fits(network("linear", 0))
    assert not fits(other())
