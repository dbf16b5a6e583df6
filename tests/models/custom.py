"""Models as people write them who have never heard of transformers: names, layouts and spellings of their own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, INNER, VOCAB = 32, 4, 48, 61
SIZE = WIDTH // HEADS


class Scale(nn.Module):
    """An RMSNorm that nothing in its name gives away."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.g * (x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + 1e-6))


def turned(x: Tensor, base: float = 1000.0) -> Tensor:
    """A rotation by position of neighbouring pairs, in (batch, length, heads, size)."""
    at = torch.arange(x.shape[1])[:, None] * base ** (-torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    cos, sin = at.cos()[:, None], at.sin()[:, None]
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


class RelativeBias(nn.Module):
    """An encoder whose attention adds a learned number for each distance, and whose MLP is gated by a sigmoid of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.far = nn.Embedding(VOCAB, WIDTH), 6
        self.layers = nn.ModuleList([nn.ModuleDict({n: nn.Linear(WIDTH, WIDTH) for n in "qkvo"}) for _ in range(2)])
        self.tables = nn.ParameterList([torch.randn(2 * self.far + 1, HEADS) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(2)])
        self.wide, self.gate, self.narrow = nn.Linear(WIDTH, INNER), nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        batch, length, _ = x.shape
        place = torch.arange(length)
        distance = (place[None] - place[:, None]).clamp(-self.far, self.far) + self.far
        for layer, table, norm in zip(self.layers, self.tables, self.norms, strict=True):
            q, k, v = (layer[n](x).reshape(batch, length, HEADS, SIZE) for n in "qkv")  # type: ignore[index]
            scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(SIZE) + table[distance].permute(2, 0, 1)
            x = norm(x + layer["o"](torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).reshape(batch, length, WIDTH)))  # type: ignore[index]
        return x + self.narrow(F.silu(self.gate(x)) * self.wide(x))


class OddlyPacked(nn.Module):
    """A decoder with one projection that holds q, k and v head by head, and one that holds gates and values in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList()
        for _ in range(2):
            parts = {"in": nn.Linear(WIDTH, 3 * WIDTH, bias=False), "out": nn.Linear(WIDTH, WIDTH, bias=False)}
            parts |= {"both": nn.Linear(WIDTH, 2 * INNER, bias=False), "down": nn.Linear(INNER, WIDTH, bias=False), "one": Scale(), "two": Scale()}
            self.blocks.append(nn.ModuleDict(parts))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        batch, length, _ = x.shape
        for block in self.blocks:
            packed = block["in"](block["one"](x)).view(batch, length, HEADS, 3, SIZE)  # type: ignore[index]
            q, k, v = packed[..., 0, :], packed[..., 1, :], packed[..., 2, :]
            q, k = turned(q).transpose(1, 2), turned(k).transpose(1, 2)
            scores = (q @ k.transpose(-1, -2)) * SIZE**-0.5
            hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
            weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            x = x + block["out"]((weights @ v.transpose(1, 2)).transpose(1, 2).reshape(batch, length, WIDTH))  # type: ignore[index]
            both = block["both"](block["two"](x)).unflatten(-1, (INNER, 2))  # type: ignore[index]
            x = x + block["down"](F.gelu(both[..., 0], approximate="tanh") * both[..., 1])  # type: ignore[index]
        return x @ self.words.weight.t()


class Looped(nn.Module):
    """One layer three times over, grouped heads, a window, and a cap on the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)
        self.to_q, self.to_kv, self.back = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.pre, self.end = Scale(), Scale()

    def layer(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        inner = self.pre(x)
        q = turned(self.to_q(inner).view(batch, length, HEADS, SIZE)).transpose(1, 2)
        k, v = self.to_kv(inner).view(batch, length, 2, HEADS // 2, SIZE).unbind(2)
        k, v = turned(k).transpose(1, 2), v.transpose(1, 2)
        k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
        row = torch.arange(length)
        near = (row[:, None] >= row) & (row[:, None] - row < 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=near)
        return x + self.back(mixed.transpose(1, 2).reshape(batch, length, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        for _ in range(3):
            x = self.layer(x)
        return 20.0 * torch.tanh(self.last(self.end(x)) / 20.0)


class GatedResidual(nn.Module):
    """Norms after the residual sum, which a learned gate weighs; attention by two matmuls in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCAB, WIDTH)
        self.qkv = nn.ModuleList([nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2)])
        self.weigh = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])
        self.after = nn.ModuleList([Scale() for _ in range(2)])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        batch, length, _ = x.shape
        low = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
        for qkv, weigh, after in zip(self.qkv, self.weigh, self.after, strict=True):
            q, k, v = qkv(x).view(batch, length, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
            weights = F.softmax(torch.matmul(q, k.transpose(2, 3)).float() / SIZE**0.5 + low, dim=-1).to(x.dtype)
            mixed = torch.matmul(weights, v).permute(0, 2, 1, 3).flatten(2)
            x = after(x + torch.sigmoid(weigh(x)) * mixed)
        return x


class Nested(nn.Module):
    """Lists of lists of modules, norms as functions of bare parameters, keys of other positions than queries."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCAB, WIDTH)
        self.stages = nn.ModuleList([nn.ModuleList([self.step() for _ in range(2)]) for _ in range(2)])

    @staticmethod
    def step() -> nn.ModuleList:
        maps = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4)]
        return nn.ModuleList([*maps, nn.Linear(WIDTH, INNER), nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH), nn.ParameterList([torch.ones(WIDTH)] * 2)])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        seen = x[:, : x.shape[1] // 2]
        for stage in self.stages:
            for a, b, c, d, e, f, g, weights in stage:  # type: ignore[misc]
                x = x + d(_crossed(*(_heads(m(y)) for m, y in ((a, F.rms_norm(x, (WIDTH,), weights[0], 1e-5)), (b, seen), (c, seen)))))
                y = F.rms_norm(x, (WIDTH,), weights[1], 1e-5)
                x = x + g(F.relu(e(y)) ** 2 * f(y))
        return x


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, SIZE)).movedim(2, 1)


def _crossed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v).movedim(1, 2).flatten(2)


# What each computes, in sites.
MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "relative bias": (RelativeBias, {"attention": 2, "layer_norm": 2, "add_layer_norm": 2, "glu": 1, "merged_linear": 3}),
    "oddly packed": (OddlyPacked, {"attention": 2, "rms_norm": 4, "rope": 2, "glu": 2, "add_rms_norm": 3}),
    "looped": (Looped, {"attention": 3, "rms_norm": 4, "rope": 3, "softcap": 1, "add_rms_norm": 3, "merged_linear": 3}),
    "gated residual": (GatedResidual, {"attention": 2, "rms_norm": 2, "add_rms_norm": 2, "merged_linear": 2}),
    "nested": (Nested, {"attention": 4, "rms_norm": 8, "glu": 4, "add_rms_norm": 7, "merged_linear": 5}),
}
