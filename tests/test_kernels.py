"""The compiled step against PyTorch's operators."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F

from common import kernels

SHAPES = [(3, 32), (16, 14)]


def layer(channels, side, n=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, side, side, generator=g)
    weight = torch.randn(16, channels, 5, 5, generator=g) / 10
    bias = torch.randn(16, generator=g) / 2
    return x, weight.requires_grad_(), bias.requires_grad_()


def plain(x, weight, bias):
    return F.max_pool2d(F.relu(F.conv2d(x, weight, bias)), 2)


def compiled(monkeypatch):
    """Make sure that the compiled step runs, and count its calls."""
    if kernels.library() is None:
        pytest.skip("needs a C compiler, and finds none")
    calls, call = [], kernels._call
    monkeypatch.setattr(kernels, "_call", lambda *args: calls.append(args[0]) or call(*args))
    return calls


@pytest.mark.parametrize(("channels", "side"), SHAPES)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("n", [1, 5])
def test_the_compiled_step_equals_pytorch(monkeypatch, channels, side, layout, n):
    calls = compiled(monkeypatch)
    x, weight, bias = layer(channels, side, n)
    x = x.contiguous(memory_format=layout)
    wanted = [weight, bias]
    if channels == 16:
        wanted.append(x.requires_grad_())
    ours, theirs = kernels.conv_relu_pool(x, weight, bias), plain(x, weight, bias)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert (theirs == 0).any()
    assert (theirs > 0).any()
    g = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1))
    by_ours, by_theirs = (torch.autograd.grad(out, wanted, g) for out in (ours, theirs))
    for a, b in zip(by_ours, by_theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    assert calls == ["forward", "backward"]


def test_the_gradient_of_equal_pixels_goes_to_the_first(monkeypatch):
    compiled(monkeypatch)
    x, weight, bias = layer(16, 14)
    x = torch.ones_like(x).requires_grad_()  # all pixels of a channel come out equal
    g = torch.rand(3, 16, 5, 5)
    ours = torch.autograd.grad(kernels.conv_relu_pool(x, weight, bias), x, g)[0]
    # Our plain version pools first; where all four are equal it takes the first as well.
    theirs = torch.autograd.grad(F.relu(F.max_pool2d(F.conv2d(x, weight, bias), 2)), x, g)[0]
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(("channels", "side"), SHAPES)
def test_what_is_not_a_number_stays_so(monkeypatch, channels, side):
    compiled(monkeypatch)
    x, weight, bias = layer(channels, side)
    out = kernels.conv_relu_pool(x * torch.nan, weight, bias)
    assert out.isnan().all()


@pytest.mark.parametrize(
    "change",
    [
        lambda x, w, b: (x.requires_grad_(), w, b),  # an attack's gradient of the image
        lambda x, w, b: (x.double(), w.double(), b.double()),
        lambda x, w, b: (x[..., :30], w, b),
        lambda x, w, b: (x, w[:8], b[:8]),
        lambda x, w, b: (x, w[..., :3], b),
    ],
)
def test_whatever_it_is_not_written_for_goes_to_pytorch(monkeypatch, change):
    calls = compiled(monkeypatch)
    x, weight, bias = change(*layer(3, 32))
    out = kernels.conv_relu_pool(x, weight, bias)
    assert torch.allclose(out, plain(x, weight, bias), atol=1e-6)
    assert calls == []
    assert out.requires_grad
    if x.requires_grad:
        assert torch.autograd.grad(out.sum(), x)[0].abs().sum() > 0


def test_without_a_compiler_pytorch_does_it(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "ROOT", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    kernels.library.cache_clear()
    try:
        assert kernels.library() is None
        x, weight, bias = layer(3, 32)
        expected = plain(x, weight, bias)
        assert torch.allclose(kernels.conv_relu_pool(x, weight, bias), expected, atol=1e-6)
    finally:
        kernels.library.cache_clear()


def test_it_is_compiled_once(monkeypatch, tmp_path):
    if kernels.library() is None:
        pytest.skip("needs a C compiler, and finds none")
    monkeypatch.setattr(kernels, "ROOT", tmp_path)
    kernels.library.cache_clear()
    try:
        assert kernels.library() is not None
        (file,) = (tmp_path / "data").iterdir()
        written = file.stat().st_mtime_ns
        kernels.library.cache_clear()
        assert kernels.library() is not None
        assert file.stat().st_mtime_ns == written
    finally:
        kernels.library.cache_clear()
