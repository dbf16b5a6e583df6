"""Convolutions of each channel over the tokens before a token become sums; all others stay what they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hfgraph

PLAIN = {"inductor": False, "strict": True}
X, W, B = (torch.randn(s, generator=torch.Generator().manual_seed(i)) for i, s in enumerate(((2, 6, 11), (6, 1, 4), (6,))))
STATE = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(3))


def compiled(function: Callable[..., Tensor], **options: object) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(function, backend="hfgraph", options=PLAIN, **options)  # type: ignore[call-overload]


def notes() -> list[str]:
    return [s.note for s in hfgraph.last_report().sites if s.rule == "short_conv" and s.status == "recognised"]


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "it looks ahead as far as back": lambda x: F.conv1d(x, W[..., :3], B, padding=1, groups=6),
    "it looks ahead alone": lambda x: F.conv1d(x, W, B, padding=3, groups=6)[..., 3:],
    "a token fewer": lambda x: F.conv1d(x, W, B, padding=3, groups=6)[..., : x.shape[2] - 1],
    "a token more": lambda x: F.conv1d(x, W, B, padding=3, groups=6)[..., : x.shape[2] + 1],
    "every second of the first": lambda x: F.conv1d(x, W, B, padding=3, groups=6)[..., : x.shape[2] : 2],
    "as many channels": lambda x: F.conv1d(x, W, B, padding=3, groups=6)[:, : x.shape[2]],
    "all that it gives is used": lambda x: (y := F.conv1d(x, W, B, padding=3, groups=6))[..., : x.shape[2]] + y[..., 3:],
    "fewer zeros": lambda x: F.conv1d(x, W, B, padding=2, groups=6),
    "steps": lambda x: F.conv1d(x, W, B, stride=2, groups=6),
    "holes": lambda x: F.conv1d(x, W, B, padding=6, dilation=2, groups=6)[..., : x.shape[2]],
    "groups of two": lambda x: F.conv1d(x, W.repeat(1, 2, 1), B, padding=3, groups=3)[..., : x.shape[2]],
    "two results for each channel": lambda x: F.conv1d(x, W.repeat(2, 1, 1), B.repeat(2), groups=6),
    "one tap": lambda x: F.conv1d(x, W[..., :1], B, groups=6),
    "no batch": lambda x: F.conv1d(x[0], W, B, padding=3, groups=6)[..., : x.shape[2]],
    "many taps": lambda x: F.conv1d(x.repeat(1, 1, 3), W.repeat(1, 1, 5), B, groups=6),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_convolutions_are_left_alone(name: str) -> None:
    want = OTHERS[name](X)
    assert torch.equal(compiled(OTHERS[name])(X), want) and notes() == []


def _prompt(x: Tensor) -> Tensor:
    return F.conv1d(x, W.to(x.dtype), B.to(x.dtype), padding=3, groups=6)[..., : x.shape[2]]


def _token(x: Tensor) -> Tensor:
    return F.conv1d(torch.cat([STATE.to(x.dtype), x], -1), W.to(x.dtype), B.to(x.dtype), groups=6)[..., -x.shape[2] :]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [_prompt, _token])
def test_in_models_layout_and_without_rounding_twice(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """Tokens lie side by side in memory, results may be viewed as a convolution's, and half precision is the convolution's bit for bit."""
    x = X.transpose(1, 2).contiguous().transpose(1, 2).to(dtype)
    want = function(x)
    got = compiled(function)(x)
    assert notes() == ["state of 6 x 3 per sequence"] and got.contiguous().stride() == got.stride()
    torch.testing.assert_close(got, want, atol=1e-6 if dtype is torch.float32 else 0, rtol=0)
    exact = function(X.to(dtype).double())
    assert (got.double() - exact).abs().max() <= 1.1 * (want.double() - exact).abs().max() + 1e-7


def test_what_stands_before_the_tokens_is_not_said_to_be_a_state_where_nothing_says_so() -> None:
    """As many zeros before as behind: the same sum, of a window that looks ahead."""
    f = compiled(lambda x: F.conv1d(F.pad(x, (1, 2)), W, B, groups=6))
    torch.testing.assert_close(f(X), F.conv1d(F.pad(X, (1, 2)), W, B, groups=6), atol=1e-6, rtol=0)
    assert notes() == ["4 places"]


def test_autocast_keeps_the_convolution_and_says_so() -> None:
    """There a convolution is bfloat16, and sums of products would not be."""

    def function(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.conv1d(x, W, B, padding=3, groups=6)[..., : x.shape[2]]

    got = compiled(function)(X)
    assert torch.equal(got, function(X)) and notes() == []
    assert ["instead of torch.bfloat16" in s.reason for s in hfgraph.last_report().near_misses if s.rule == "short_conv"] == [True]


def test_gradients() -> None:
    weight, bias = nn.Parameter(W.clone()), nn.Parameter(B.clone())

    def function(x: Tensor) -> Tensor:
        return F.conv1d(x, weight, bias, padding=3, groups=6)[..., : x.shape[2]]

    x = X.clone().requires_grad_()
    found = [torch.autograd.grad(f(x).square().sum(), (x, weight, bias)) for f in (compiled(function), function)]
    assert notes() == ["state of 6 x 3 per sequence"]
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_fewer_tokens_than_places_are_an_error_as_before() -> None:
    f = compiled(lambda x: F.conv1d(x, W, B, groups=6))
    with pytest.raises(Exception, match=r"(?i)kernel size"):
        f(X[..., :3])
