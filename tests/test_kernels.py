"""The compiled step against PyTorch's operators."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F

from common import kernels


def layers(n=3, seed=0, stack=None):
    """Images, what dropout keeps, and the parameters of one network, or of `stack`."""
    if stack is not None:
        each = [layers(n, seed + k) for k in range(stack)]
        x, kept, parameters = zip(*each, strict=True)
        parameters = [torch.stack(p).requires_grad_() for p in zip(*parameters, strict=True)]
        return torch.stack(x), torch.stack(kept), parameters
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, 32, 32, generator=g) * 2 - 1
    kept = (torch.rand(n, 204, generator=g) < 0.5) * 2.0
    shapes = [(16, 3, 5, 5), (16, 16, 5, 5), (120, 400), (84, 120)]
    parameters = []
    for shape in shapes:
        spread = (2 / torch.Size(shape[1:]).numel()) ** 0.5
        parameters.append(torch.randn(shape, generator=g) * spread)
        parameters.append(torch.randn(shape[0], generator=g) / 2)
    return x, kept, [p.requires_grad_() for p in parameters]


def plain(x, kept, w1, b1, w2, b2, w3, b3, w4, b4):
    x = F.max_pool2d(F.relu(F.conv2d(x, w1, b1)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, w2, b2)), 2)
    kept = torch.ones(len(x), 204, dtype=x.dtype) if kept is None else kept
    x = F.relu(F.linear(x.flatten(1), w3, b3)) * kept[:, :120]
    return F.relu(F.linear(x, w4, b4)) * kept[:, 120:]


def compiled(monkeypatch):
    """Make sure that the compiled step runs, and count its calls."""
    if kernels.library() is None:
        pytest.skip("needs a C compiler, and finds none")
    calls, call = [], kernels.call
    monkeypatch.setattr(kernels, "call", lambda *args: calls.append(args[0]) or call(*args))
    return calls


def close(ours, theirs):
    return torch.allclose(ours, theirs, atol=1e-4 * theirs.abs().max().clamp(min=1e-2).item())


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("n", [1, 5, 2 * kernels.PART + 5])
@pytest.mark.parametrize("dropout", [True, False])
@pytest.mark.parametrize("wanted", ["all", "parameters", "images"])
def test_the_compiled_step_equals_pytorch(monkeypatch, layout, n, dropout, wanted):
    calls = compiled(monkeypatch)
    x, kept, parameters = layers(n)
    x, kept = x.contiguous(memory_format=layout), kept if dropout else None
    wanted_of = {"all": [x, *parameters], "parameters": parameters, "images": [x]}[wanted]
    for t in (x, *parameters):
        t.requires_grad_(any(t is one for one in wanted_of))
    ours, theirs = kernels.hidden(x, kept, *parameters), plain(x, kept, *parameters)
    assert close(ours, theirs)
    assert (theirs == 0).any()
    assert (theirs > 0).any()
    g = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1))
    by_ours, by_theirs = (torch.autograd.grad(out, wanted_of, g) for out in (ours, theirs))
    for a, b in zip(by_ours, by_theirs, strict=True):
        assert b.abs().max() > 0
        assert close(a, b)
    assert calls == ["hidden", "hidden_backward"]


@pytest.mark.parametrize("wanted", ["images", "parameters"])
def test_threads_change_nothing(monkeypatch, wanted):
    compiled(monkeypatch)
    x, kept, parameters = layers(5 * kernels.PART)
    if wanted == "images":
        x, parameters = x.requires_grad_(), [p.detach() for p in parameters]
    g = torch.randn(len(x), 84, generator=torch.Generator().manual_seed(1))
    found, before = [], torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        out = kernels.hidden(x, kept, *parameters)
        torch.set_num_threads(4 - threads)  # the backward pass may run with others
        of = [x] if wanted == "images" else parameters
        found.append([out, *torch.autograd.grad(out, of, g)])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("shared", [True, False])
def test_a_stack_equals_each_alone(monkeypatch, shared):
    calls = compiled(monkeypatch)
    x, kept, parameters = layers(stack=3)
    x = x[0] if shared else x.requires_grad_()
    wanted = parameters if shared else [x, *parameters]
    ours = kernels.hidden(x, kept, *parameters)
    each = zip(x.expand(3, 3, 3, 32, 32), kept, *parameters, strict=True)
    theirs = torch.stack([plain(*one) for one in each])
    assert close(ours, theirs)
    g = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1))
    by_ours, by_theirs = (torch.autograd.grad(out, wanted, g) for out in (ours, theirs))
    assert all(close(a, b) for a, b in zip(by_ours, by_theirs, strict=True))
    assert calls == ["hidden", "hidden_backward"]


def test_the_gradient_of_equal_pixels_goes_to_the_first(monkeypatch):
    compiled(monkeypatch)
    x, _, parameters = layers()
    x = torch.ones_like(x).requires_grad_()  # all pixels of a channel come out equal
    g = torch.rand(3, 84)
    ours = torch.autograd.grad(kernels.hidden(x, None, *parameters), x, g)[0]
    theirs = torch.autograd.grad(kernels.plain(x, None, *parameters), x, g)[0]
    assert theirs.abs().max() > 0
    # A pixel of an upper left corner takes all of its four's: where the last can't reach.
    assert (theirs[..., -1, -1] == 0).all()
    assert close(ours, theirs)


@pytest.mark.parametrize("which", range(9))
def test_what_is_not_a_number_stays_so(monkeypatch, which):
    compiled(monkeypatch)
    x, _, parameters = layers()
    tensors = [x, *(p.detach() for p in parameters)]
    tensors[which] = tensors[which] * torch.nan
    assert kernels.hidden(tensors[0], None, *tensors[1:]).isnan().all()


@pytest.mark.parametrize("change", ["double", "one gradient for three networks"])
def test_whatever_it_is_not_written_for_goes_to_pytorch(monkeypatch, change):
    calls = compiled(monkeypatch)
    x, kept, parameters = layers()
    if change == "double":
        x, kept, parameters = x.double(), kept.double(), [p.double() for p in parameters]
        theirs = plain(x, kept, *parameters)
    else:
        _, kept, parameters = layers(stack=3)
        x.requires_grad_()
        theirs = torch.stack([plain(x, *one) for one in zip(kept, *parameters, strict=True)])
    ours = kernels.hidden(x, kept, *parameters)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert calls == []
    if x.requires_grad:
        by_ours, by_theirs = (torch.autograd.grad(out.sum(), x)[0] for out in (ours, theirs))
        assert close(by_ours, by_theirs)


def test_without_a_compiler_pytorch_does_it(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "ROOT", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    kernels.library.cache_clear()
    try:
        assert kernels.library() is None
        x, kept, parameters = layers()
        expected = plain(x, kept, *parameters)
        assert torch.allclose(kernels.hidden(x, kept, *parameters), expected, atol=1e-5)
    finally:
        kernels.library.cache_clear()


@pytest.mark.parametrize("threads", [kernels.THREADS, "--no-such-option"])
def test_it_is_compiled_once(monkeypatch, tmp_path, threads):
    monkeypatch.setattr(kernels, "THREADS", threads)
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
