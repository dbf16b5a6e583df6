"""Convolutions that cut patches become a matmul; all others stay what they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hfgraph

PLAIN = {"inductor": False, "strict": True}
X, W, B = (torch.randn(s, generator=torch.Generator().manual_seed(i)) for i, s in enumerate(((2, 4, 24, 16), (6, 4, 8, 8), (6,))))


def compiled(function: Callable[..., Tensor], **options: object) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(function, backend="hfgraph", options=PLAIN, **options)  # type: ignore[call-overload]


def sites() -> int:
    return hfgraph.last_report().counts.get("patch_embedding", 0)


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "patches that overlap": lambda x: F.conv2d(x, W, B, stride=4),
    "gaps between patches": lambda x: F.conv2d(x, W, B, stride=9),
    "another stride in one dim": lambda x: F.conv2d(x, W, B, stride=(8, 4)),
    "zeros around": lambda x: F.conv2d(x, W, B, stride=8, padding=1),
    "zeros around in one dim": lambda x: F.conv2d(x, W, B, stride=8, padding=(0, 4)),
    "holes in the kernel": lambda x: F.conv2d(x, W, B, stride=8, dilation=(2, 1)),
    "groups": lambda x: F.conv2d(x, W[:, :2], B, stride=8, groups=2),
    "one pixel": lambda x: F.conv2d(x, W[:, :, :1, :1], B),
    "no batch": lambda x: F.conv2d(x[0], W, B, stride=8),
    "the other way": lambda x: F.conv_transpose2d(x, W.transpose(0, 1), B, stride=8),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_convolutions_are_left_alone(name: str) -> None:
    want = OTHERS[name](X)
    assert torch.equal(compiled(OTHERS[name])(X), want) and sites() == 0


@pytest.mark.parametrize("layout", ["image", "weight"])
def test_channels_last_is_left_alone_and_reported(layout: str) -> None:
    """The result would have other strides, and a view of it might not exist."""
    x, w = (t.to(memory_format=torch.channels_last) if layout == n else t for n, t in (("image", X), ("weight", W)))
    f = compiled(lambda x, w: F.conv2d(x, w, stride=8))
    got = f(x, w)
    assert got.stride() == F.conv2d(x, w, stride=8).stride() and sites() == 0
    assert ["not contiguous, as with channels last" in s.reason for s in hfgraph.last_report().near_misses] == [True]


def test_one_graph_for_images_of_any_size() -> None:
    """Dynamic sizes; and where an image is smaller than a patch, PyTorch says so as before."""
    weight = nn.Parameter(W)  # the sizes of parameters are numbers
    f = compiled(lambda x: F.conv2d(x, weight, B, stride=8).flatten(2), dynamic=True)
    for size in ((2, 4, 24, 16), (3, 4, 41, 70), (1, 4, 8, 9)):
        x = torch.randn(size)
        torch.testing.assert_close(f(x), F.conv2d(x, W, B, stride=8).flatten(2), atol=1e-4, rtol=1e-5)
        assert sites() == 1
    with pytest.raises(Exception, match="Kernel size can't be greater"):
        f(torch.randn(2, 4, 5, 16))


def test_as_many_images_as_the_data_says() -> None:
    """A size that only the data knows."""
    weight = nn.Parameter(W)

    def function(x: Tensor, real: Tensor) -> Tensor:
        return F.conv2d(x[real], weight, B, stride=8).flatten(2)

    x, real = torch.randn(4, 4, 24, 16), torch.tensor([True, False, True, True])
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        got = compiled(function, fullgraph=True)(x, real)
    assert sites() == 1
    torch.testing.assert_close(got, function(x, real), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_is_left_alone_and_reported(dtype: torch.dtype) -> None:
    def function(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            return F.conv2d(x, W, B, stride=8)

    got, want, exact = compiled(function)(X), function(X), F.conv2d(X.double(), W.double(), B.double(), stride=8)
    assert got.dtype == want.dtype == dtype
    assert sites() == 0 and ["the op would give torch.float32" in m.reason for m in hfgraph.last_report().near_misses] == [True]
    error, usual = ((t.double() - exact).square().mean().sqrt() for t in (got, want))
    assert error <= 1.1 * usual


def test_gradients() -> None:
    model = nn.Conv2d(4, 6, 8, stride=8)
    x = X.clone().requires_grad_()
    want = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    got = torch.autograd.grad(compiled(model)(x).square().sum(), [x, *model.parameters()])
    assert sites() == 1
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_further_from_float64_than_the_convolution(scale: float, dtype: torch.dtype) -> None:
    x, w, b = (X * scale).to(dtype), W.to(dtype), B.to(dtype)
    exact = F.conv2d(x.double(), w.double(), b.double(), stride=8)
    got = compiled(lambda x: F.conv2d(x, w, b, stride=8))(x)
    assert sites() == 1 and got.is_contiguous()
    error, usual = ((t.double() - exact).square().mean().sqrt() for t in (got, F.conv2d(x, w, b, stride=8)))
    assert error <= 1.1 * usual + 1e-7 * exact.abs().max()


def test_the_last_rows_do_not_matter() -> None:
    """What fits no patch is not read, be it NaN."""
    x = torch.cat([X, torch.full((2, 4, 5, 16), torch.nan)], 2)
    torch.testing.assert_close(compiled(lambda x: F.conv2d(x, W, B, stride=8))(x), F.conv2d(X, W, B, stride=8), atol=1e-4, rtol=1e-5)
    assert sites() == 1


def test_the_report_says_how_large_patches_are() -> None:
    compiled(nn.Conv3d(3, 6, (2, 4, 4), stride=(2, 4, 4)))(torch.randn(2, 3, 4, 8, 8))
    assert [s.note for s in hfgraph.last_report().sites if s.rule == "patch_embedding"] == ["patches of 2 x 4 x 4"]


@torch.no_grad()
def test_through_inductor() -> None:
    """Rows of patches that a processor has cut: the convolution sees each as a whole film."""
    model = nn.Conv3d(3, 6, (2, 4, 4), stride=(2, 4, 4), bias=False)
    rows = torch.randn(10, 96)

    def embed(rows: Tensor) -> Tensor:
        return model(rows.view(-1, 3, 2, 4, 4)).view(-1, 6)

    got = torch.compile(embed, backend="hfgraph")(rows)
    torch.testing.assert_close(got, embed(rows), atol=1e-5, rtol=1e-5)
    assert sites() == 1
