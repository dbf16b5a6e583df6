"""Small functions that hold, between them, what graphs of models hold: what passes must not disturb."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Example:
    """A function, and a maker of its arguments from a batch size, a length and whether gradients are wanted."""

    function: Callable[..., Any]
    make: Callable[[int, int, bool], tuple[Any, ...]]


D, H = 8, 2
EXAMPLES: dict[str, Example] = {}


def _numbers(*shape: int, grad: bool = False, dtype: torch.dtype = torch.float32, low: float = -3.0) -> Tensor:
    count = 1
    for size in shape:
        count *= size
    return (torch.linspace(low, 3, count).reshape(shape) + torch.linspace(0, 1, shape[-1])).sin().to(dtype).requires_grad_(grad)


def _x(b: int, t: int, grad: bool) -> tuple[Any, ...]:
    return (_numbers(b, t, D, grad=grad),)


def _x_w(b: int, t: int, grad: bool) -> tuple[Any, ...]:
    return _numbers(b, t, D, grad=grad), (1 + _numbers(D) / 3).detach().requires_grad_(grad)


def example(name: str, make: Callable[[int, int, bool], tuple[Any, ...]] = _x_w) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as an example."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        EXAMPLES[name] = Example(function, make)
        return function

    return register


def norm(x: Tensor, w: Tensor, eps: float = 1e-6) -> Tensor:
    """RMSNorm as Llama writes it."""
    h = x.float()
    return w * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def layer_norm(x: Tensor, w: Tensor, eps: float = 1e-5) -> Tensor:
    """LayerNorm without a bias, in elementary operators."""
    h = x.float()
    mean = h.mean(-1, keepdim=True)
    h = (h - mean) * torch.rsqrt((h - mean).pow(2).mean(-1, keepdim=True) + eps)
    return (w.float() * h).to(x.dtype)


# --- rotations ----------------------------------------------------------------------------------------


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def _heads_and_tables(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Heads as of two projections (batch, positions, heads, width), and tables by position."""
    b, t, _ = x.shape
    q, k = (a.view(b, t, H, D // H) for a in (x * 0.5, x.sin()))
    angles = torch.arange(t)[:, None, None] * torch.tensor([1.0, 0.1])
    angles = torch.cat((angles, angles), -1).to(x.dtype)
    return q, k, angles.cos(), angles.sin()


def _attended(q: Tensor, k: Tensor) -> Tensor:
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, k)


@example("queries and keys turned by position")
def _rope(x: Tensor, w: Tensor) -> Tensor:
    q, k, cos, sin = _heads_and_tables(x)
    y = _attended(_turned(q, cos, sin), _turned(k, cos, sin)).transpose(1, 2).contiguous()
    return _turned(y, sin, cos) * w[: D // H]


@example("queries and keys normalised and turned")
def _normed_rope(x: Tensor, w: Tensor) -> Tensor:
    q, k, cos, sin = _heads_and_tables(x)
    return _attended(*(_turned(norm(a, w[: D // H]), cos, sin) for a in (q, k)))


# --- a block ------------------------------------------------------------------------------------------


def _block_inputs(dtype: torch.dtype) -> Callable[[int, int, bool], tuple[Any, ...]]:
    def make(b: int, t: int, grad: bool) -> tuple[Any, ...]:
        weights = [_numbers(*s, grad=grad, dtype=dtype) for s in ((3 * D, D), (D, D), (2 * D, D), (D, D))]
        norms = [(1 + _numbers(D) / 3).to(dtype).detach().requires_grad_(grad) for _ in range(2)]
        return (_numbers(b, t, D, grad=grad, dtype=dtype), *weights, *norms)

    return make


def _block(x: Tensor, qkv: Tensor, out: Tensor, gate_up: Tensor, down: Tensor, first: Tensor, second: Tensor) -> Any:
    b, t, _ = x.shape
    q, k, v = F.linear(norm(x, first), qkv).chunk(3, -1)
    q, k, v = (a.view(b, t, H, D // H).transpose(1, 2) for a in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + F.linear(y.transpose(1, 2).reshape(b, t, D), out)
    gate, up = F.linear(norm(x, second), gate_up).split(D, -1)
    return x + F.linear(F.silu(gate) * up, down), y


example("block", _block_inputs(torch.float32))(_block)
example("block in bfloat16", _block_inputs(torch.bfloat16))(_block)


def _frozen(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(_numbers(*shape).mul(4).round(), requires_grad=False)


@example("linears of one input", lambda b, t, grad: (*_x(b, t, grad), _frozen(16, D), _frozen(16, D), _frozen(12, D), _frozen(12), _frozen(12, D), _frozen(12)))
def _siblings(x: Tensor, gate: Tensor, up: Tensor, k: Tensor, k_bias: Tensor, v: Tensor, v_bias: Tensor) -> Any:
    """Of a value computed twice, with and without biases; results that leave, are viewed, are written, and strides that are
    read. On small whole numbers: one matmul may sum in another order than several."""
    b, t, _ = x.shape
    x = (x * 4).round()
    keys, values = F.linear(x * 2, k, k_bias), F.linear(x * 2, v, v_bias)
    keys = keys.view(b, t, 2, 6).transpose(1, 2)
    mixed = F.relu(F.linear(x, gate)) * F.linear(x, up)
    x = x + 1
    written = F.linear(x, up).neg_()
    return mixed, keys * 2, keys.flatten(2).sum(-1), values, written, F.linear(x, gate).as_strided((b, t), (t * 16, 16))


@example("eager attention, mask filled in place")
def _masked(x: Tensor, w: Tensor) -> Any:
    t = x.shape[1]
    scores = x @ x.transpose(-1, -2)
    scores.div_(2.5)
    allowed = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
    scores.masked_fill_(~allowed, float("-inf"))
    return norm(scores.softmax(-1, dtype=torch.float32).to(x.dtype) @ x, w)


@example("rotary", _x)
def _rotary(x: Tensor) -> Any:
    angle = torch.arange(x.shape[1], device=x.device)[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])
    cos, sin = torch.cat((angle.cos(), angle.cos()), -1), torch.cat((angle.sin(), angle.sin()), -1)
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


# --- around a projection ------------------------------------------------------------------------------


@example("gated MLP of two projections, clamped")
def _gated(x: Tensor, w: Tensor) -> Any:
    square = torch.outer(w, w)
    gate, up = F.linear(x, square).clamp(max=1.5), F.linear(x, square + 1, w).clamp(-2.0, 2.0)
    return (up + 1) * (gate * torch.sigmoid(gate * 1.702)), F.silu(F.linear(x, square)) * norm(x, w)


@example("logits, capped")
def _logits(x: Tensor, w: Tensor) -> Any:
    return 3.0 * torch.tanh(F.linear(norm(x, w), torch.outer(w, w)) / 3.0)


# --- norms that meet ----------------------------------------------------------------------------------


@example("two norms of one input, and one of a norm")
def _shared(x: Tensor, w: Tensor) -> Any:
    return norm(x, w) + norm(x, w + 1), norm(norm(x, w), w)


@example("equal results, both returned")
def _equal(x: Tensor, w: Tensor) -> Any:
    return norm(x, w), norm(x, w), x + 1, x + 1


@example("residual, added in place")
def _residual(x: Tensor, w: Tensor) -> Any:
    h = x * 2
    h += x.flip(0)
    y = norm(h, w)
    h = h + y
    return norm(h, w), h


@example("parallel branches")
def _parallel(x: Tensor, w: Tensor) -> Any:
    """Both branches read one sum; the sum of the two is added to it, and feeds two norms."""
    dims = (x.shape[-1],)
    h = x + (F.layer_norm(x, dims, w).sin() + F.layer_norm(x, dims, 1 + w.detach()).cos())
    return F.layer_norm(h, dims, None, w), F.layer_norm(h, dims), h.relu()


@example("a residual beside a multiple")
def _multiple(x: Tensor, w: Tensor) -> Any:
    h = x + norm(x, w).sin() * 0.22
    y = 0.5 * F.layer_norm(h, (x.shape[-1],)).sin() + h
    return norm(h, w.detach()), layer_norm(y, w), y.relu()


@example("F.rms_norm and an offset")
def _functional(x: Tensor, w: Tensor) -> Any:
    h = x.float()
    gemma = (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5)) * (1.0 + w.float())
    return F.rms_norm(x, (x.shape[-1],), w, 1e-5), gemma.type_as(x)


@example("weight of another dtype", lambda b, t, grad: (_numbers(b, t, D, dtype=torch.bfloat16, grad=grad), _numbers(D, grad=grad)))
def _other_dtype(x: Tensor, w: Tensor) -> Any:
    return norm(x, w), norm(x, w.to(x.dtype))


@example("a number as argument", lambda b, t, grad: (*_x_w(b, t, grad), 1e-5))
def _number(x: Tensor, w: Tensor, eps: float) -> Any:
    return norm(x, w, eps), x * eps


# --- what callers see written -------------------------------------------------------------------------


def _cache_inputs(b: int, t: int, grad: bool) -> tuple[Any, ...]:
    return _numbers(b, 12, D), _numbers(b, t, D), torch.arange(t).flip(0) + 3, torch.ones(D)


@example("static cache, index_copy_", _cache_inputs)
def _index_copy(cache: Tensor, x: Tensor, at: Tensor, w: Tensor) -> Any:
    before = norm(cache, w)
    cache.index_copy_(1, at, norm(x, w))
    return before, norm(cache, w)


@example("static cache, slice assigned", _cache_inputs)
def _slice_assigned(cache: Tensor, x: Tensor, at: Tensor, w: Tensor) -> Any:
    cache[:, 2 : 2 + x.shape[1]] = x
    y = norm(cache[:, :8], w)
    cache[:, at] = x + 1
    return y, cache.transpose(1, 2) * 2


@example("static cache, window rolled", _cache_inputs)
def _window(cache: Tensor, x: Tensor, at: Tensor, w: Tensor) -> Any:
    rolled = cache.roll(-x.shape[1], dims=1)
    rolled[:, -x.shape[1] :] = x
    cache.copy_(rolled)
    return cache.sum(1), at + 1, norm(rolled, w)


@example("buffers written", lambda b, t, grad: (_numbers(b, t, D), torch.zeros(D), torch.zeros((), dtype=torch.long), torch.ones(D)))
def _buffers(x: Tensor, mean: Tensor, steps: Tensor, w: Tensor) -> Any:
    steps.add_(1)
    mean.mul_(0.9).add_(x.mean((0, 1)), alpha=0.1)
    y = norm(x - mean, w)
    mean.add_(y.sum((0, 1)))
    return y, steps * 2


@example("running statistics", lambda b, t, grad: (_numbers(b, D, t, grad=grad), torch.zeros(D), torch.ones(D)))
def _batch_norm(x: Tensor, mean: Tensor, var: Tensor) -> Any:
    first = F.batch_norm(x, mean, var, training=True)
    return first + F.batch_norm(x, mean, var, training=True), mean * 1


@example("written by a branch", lambda b, t, grad: (_numbers(b, t, D), torch.ones(D)))
@torch.no_grad()
def _branch_writes(x: Tensor, w: Tensor) -> Any:
    """Equal sums before and after, of the tensor and of a view of it; a copy that is written; and a write whose result nobody reads."""
    h = x * 2
    copy, head = h.clone(), h[:, :2]
    before = norm(h, w).sum(-1) + head.sum()
    taken = torch.cond(w.sum() > 0, lambda h: h.add_(1).sum(), lambda h: h.sum(), (h,))
    torch.cond(w.sum() > 0, lambda c: c.add_(1).sum(), lambda c: c.sum(), (copy,))
    return before - 2 * (norm(h, w).sum(-1) + head.sum()), taken, copy * 1.5


@example("read before and after a write", _cache_inputs)
def _read_twice(cache: Tensor, x: Tensor, at: Tensor, w: Tensor) -> Any:
    """The two sums are no outputs themselves: nothing but the write keeps them apart."""
    before = norm(cache, w).sum(1)
    cache.index_copy_(1, at, x)
    return before - 2 * norm(cache, w).sum(1)


# --- who shares storage with whom ---------------------------------------------------------------------


@example("outputs are views of inputs")
def _input_views(x: Tensor, w: Tensor) -> Any:
    return x, x.view(-1, D), x.transpose(0, 1), x[:1], x.reshape(x.shape), norm(x, w), w.expand(3, D)


@example("outputs are fresh", _x)
def _fresh(x: Tensor) -> Any:
    return x * 1, x.clone(), F.dropout(x, 0.0, True), x.to(x.dtype, copy=True), x / 1, x + 0


@example("outputs share", _x)
def _outputs_share(x: Tensor) -> Any:
    h = x * 2
    a, b = h.chunk(2, -1)
    return h, h.view(-1), a, b + 1, h.transpose(1, 2).contiguous(), h[:, None].expand(h.shape[0], 2, *h.shape[1:])


@example("views of views", _x)
def _views(x: Tensor) -> Any:
    b, t, d = x.shape
    h = x.view(b, t, 2, d // 2).permute(0, 2, 1, 3).unsqueeze(1).squeeze(1).flatten(0, 1)
    y = h.unflatten(0, (b, 2)).transpose(1, 2).reshape(b, t, d)
    return y.swapaxes(0, 1) + 1, h[..., 1:].select(-1, 0), y.view_as(x)[:, :] * 2


@example("written through a view", _x)
def _through_views(x: Tensor) -> Any:
    h = x * 2
    part = h[..., 2:6]
    before = part * 1
    part.add_(1)
    h.view(-1)[0] = 7
    return before, h, part.clone()


@example("written where it is strided", _x)
def _strided_writes(x: Tensor) -> Any:
    return (x * 2)[..., ::2].add_(1), (x * 2).transpose(0, 1).mul_(3), (x * 2)[:, 1].copy_(x[:, 0])


@example("operands of different layouts", lambda b, t, grad: (_numbers(t, b, D, grad=grad), _numbers(b, t, D, grad=grad), torch.ones(D)))
def _layouts(x: Tensor, residual: Tensor, w: Tensor) -> Any:
    """Strides of a sum follow its first operand."""
    x = x.transpose(0, 1)
    first, second = x + residual, residual + x
    third, fourth = x + residual.sin(), residual.sin() + x
    normed = norm(first, w), norm(second, w), norm(x, w), norm(x, w).cos()
    return *normed, first, second, layer_norm(third, w), third, layer_norm(fourth, w), fourth, layer_norm(x, w)


# --- modes, randomness, constants ---------------------------------------------------------------------


@example("no_grad beside grad")
def _no_grad(x: Tensor, w: Tensor) -> Any:
    with torch.no_grad():
        frozen = norm(x, w)
        kept = (x * 1).view(-1)
    return frozen, norm(x, w), kept, x.detach() + w


@example("equal values, one without history")
def _two_histories(x: Tensor, w: Tensor) -> Any:
    """Neither is an output: nothing but the region keeps them apart."""
    with torch.no_grad():
        frozen = norm(x, w).sum(-1)
    return frozen * 2 + norm(x, w).sum(-1)


@example("written under no_grad")
def _no_grad_write(x: Tensor, w: Tensor) -> Any:
    h = x * w
    with torch.no_grad():
        h.mul_(2)
        h[..., :2] = 0.5
    return h + 1, norm(h, w)


@example("autocast region")
def _autocast(x: Tensor, w: Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        h = F.linear(x, torch.outer(w, w))
        y = norm(h, w)
        with torch.autocast("cpu", enabled=False):
            z = F.linear(h.float(), torch.outer(w, w))
    return y, z, norm(x, w)


@example("vmap", _x)
def _vmap(x: Tensor) -> Any:
    scale = torch.linspace(1, 2, D)
    rows = torch.vmap(lambda row: row * torch.rsqrt(row.pow(2).mean(-1, keepdim=True) + 1e-6) * scale)
    return rows(x) + 1, torch.vmap(rows)(x[:, :, None])


@example("dropout in eval")
def _dropout_eval(x: Tensor, w: Tensor) -> Any:
    return norm(F.dropout(x, 0.5, False), w), F.dropout(norm(x, w), 0.0, True) + F.dropout(x, 0.3, False)


@example("dropout in training")
def _dropout(x: Tensor, w: Tensor) -> Any:
    return norm(F.dropout(x, 0.5, True), w), F.dropout(x, 0.5, True), F.dropout(x, 0.5, True)


@example("constants", _x)
def _constants(x: Tensor) -> Any:
    table = torch.tensor([[0.5, 1.0], [-2.0, 4.0]])
    mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
    return x[..., :2] @ table, (x @ x.transpose(-1, -2) + mask).softmax(-1), torch.arange(x.shape[1]) + 2 * x.shape[0], torch.ones(3)


@example("integers", lambda b, t, grad: (torch.arange(b * t).reshape(b, t) % 11, _numbers(11, D, grad=grad), torch.ones(D)))
def _integers(ids: Tensor, table: Tensor, w: Tensor) -> Any:
    y = norm(F.embedding(ids, table), w)
    logits = y @ table.t()
    return logits.argmax(-1), (ids * 1, ids + 0, ids.long()), logits.topk(2).values


def _eighths(*shape: int) -> Tensor:
    """Their products add up to the same in any order."""
    return (_numbers(*shape) * 8).round() / 8


def _signal_and_patches(b: int, t: int, grad: bool) -> tuple[Any, ...]:
    """Sizes of parameters are numbers."""
    x, w, bias = (_eighths(*shape) for shape in ((b, 6, 4 * t), (11, 6, 4), (11,)))
    return x.requires_grad_(grad), torch.nn.Parameter(w, requires_grad=grad), bias


def _signal_and_taps(b: int, t: int, grad: bool) -> tuple[Any, ...]:
    """No zeros, whose sign depends on what a sum begins with."""
    x, w = (_eighths(*shape) + 1 / 16 for shape in ((b, 6, 4 * t), (6, 1, 4)))
    return x.requires_grad_(grad), torch.nn.Parameter(w, requires_grad=grad)


@example("short convolution", _signal_and_taps)
def _short_convolution(x: Tensor, w: Tensor) -> Any:
    y = F.conv1d(x, w, padding=3, groups=6)[..., : x.shape[-1]]
    return y.relu().transpose(1, 2).reshape(y.shape[0], -1), F.conv1d(x, w, groups=6)


@example("patches", _signal_and_patches)
def _patches(x: Tensor, w: Tensor, b: Tensor) -> Any:
    y = F.conv1d(x, w, b, stride=4)
    return y.view(y.shape[0], -1), y.transpose(1, 2)
