"""Arguments for the kernel tests, for any op: dtype settings by op, and layouts for any tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hfgraph.graph.op import Op

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WIDTHS = (63, 1000, 1, 128, 5120)
Setting = Mapping[str, Any]
APART = {"attention", "moe"}  # ops whose arguments are not rows of one width: tests of their own


def _norm_settings(dtype: torch.dtype) -> dict[str, Setting]:
    """Every combination of rounding points that the recognised spellings use, and what lies between them."""
    single, other = torch.float32, torch.float16 if dtype is torch.bfloat16 else torch.bfloat16
    return {
        "rounds_then_weight": {"compute_dtype": single, "round_dtype": dtype},
        "offset_in_single": {"compute_dtype": single, "weight_dtype": single, "offset": 1.0, "out_dtype": dtype},
        "offset_in_place": {"compute_dtype": single, "round_dtype": dtype, "offset": 1.0},
        "no_weight": {"compute_dtype": single, "weight": None, "out_dtype": dtype},
        "no_weight_rounds": {"compute_dtype": single, "weight": None, "round_dtype": dtype},
        "rounds_scale": {"compute_dtype": single, "scale_dtype": dtype},
        "rounds_scale_and_value": {"compute_dtype": single, "scale_dtype": dtype, "round_dtype": other, "out_dtype": single},
        "single_weight": {"compute_dtype": single, "round_dtype": dtype, "weight": single},
        "other_weight": {"compute_dtype": single, "round_dtype": dtype, "weight": other},
        "cast_weight": {"compute_dtype": single, "round_dtype": dtype, "weight": single, "weight_dtype": dtype},
        "large_eps": {"compute_dtype": single, "round_dtype": dtype, "eps": 0.1},
        "rounds_last": {"compute_dtype": single, "out_dtype": dtype},
    }


def _glu_settings(dtype: torch.dtype) -> dict[str, Setting]:
    """Each activation alone, and the steps around it as models combine them."""
    plain: Setting = {**dict.fromkeys(("gate_max", "act_max", "up_min", "up_max")), "up_offset": 0.0}
    single, other = torch.float32, torch.float16 if dtype is torch.bfloat16 else torch.bfloat16
    found: dict[str, Setting] = {"default": {**plain, "activation": "silu"}}
    found |= {a: {**plain, "activation": a} for a in ("gelu", "gelu_tanh", "gelu_new", "swish")}
    return found | {
        "relu2": {**plain, "activation": "relu2", "gate_max": 100.0},  # float16 does not hold the square of 256
        "clamped_swish": {"activation": "swish", "act_max": None},
        "clamped_after": {"gate_max": None, "up_offset": 0.0},
        "never_clamped": {**plain, "gate_max": float("inf"), "up_min": float("-inf"), "up_max": float("inf")},
        "in_single": {**plain, "compute_dtype": single, "out_dtype": dtype},
        "in_single_all": {"activation": "swish", "compute_dtype": single, "out_dtype": dtype},
        "rounds_first": {**plain, "compute_dtype": other, "out_dtype": single},
        "other_up": {"up": other, "out_dtype": dtype},
    }


def _layer_norm_settings(dtype: torch.dtype) -> dict[str, Setting]:
    """PyTorch's operator, and the forms spelled out, with every rounding point."""
    single, other = torch.float32, torch.float16 if dtype is torch.bfloat16 else torch.bfloat16
    spelled = {"spelled": 1, "compute_dtype": single}
    return {
        "default": {},
        "in_single": {"compute_dtype": single, "weight": single, "bias": single, "out_dtype": dtype},
        "no_weight": {"compute_dtype": single, "weight": None, "bias": None, "round_dtype": dtype},
        "no_bias": {"bias": None},
        "offset": {"offset": 1.0},
        "single_parameters": {"weight": single, "bias": single},
        "rounds_last": {"compute_dtype": single, "round_dtype": other, "out_dtype": single},
        "large_eps": {"eps": 0.1},
        "rounds_then_weight": {**spelled, "round_dtype": dtype},
        "weight_in_single": {**spelled, "bias": None, "weight_dtype": single, "out_dtype": dtype},
        "offset_in_single": {**spelled, "weight_dtype": single, "offset": 1.0, "out_dtype": dtype},
        "other_weight": {**spelled, "round_dtype": dtype, "weight": other, "bias": other},
        "spelled_no_weight": {**spelled, "weight": None, "bias": None, "round_dtype": dtype},
    }


def _times(settings: Callable[[torch.dtype], dict[str, Setting]]) -> Callable[[torch.dtype], dict[str, Setting]]:
    """The same, and one in which what is added is multiplied by a number."""
    return lambda dtype: (found := settings(dtype)) | {"multiplied": {**next(iter(found.values())), "multiplier": 0.22}}


def _rotation_settings(dtype: torch.dtype) -> dict[str, Setting]:
    """How pairs lie, how wide the tables are, which part turns, and where the recognised spellings cast."""
    single, other = torch.float32, torch.float16 if dtype is torch.bfloat16 else torch.bfloat16
    return {
        "halves": {},
        "neighbours": {"interleaved": 1, "interleaved_out": 1, "half": 1},
        "regrouped": {"interleaved": 1, "half": 1},
        "reversed": {"reverse": 1, "interleaved_out": 1},
        "in_single": {"compute_dtype": single, "out_dtype": dtype},
        "single_tables": {"cos": single, "sin": single},
        "rounds": {"compute_dtype": other, "out_dtype": single},
    }


def _turned(settings: dict[str, Setting], *tails: str) -> dict[str, Setting]:
    """Once more with the last values turning, in each of the tensors."""
    return settings | {f"last_{t}": {**settings["neighbours"], t: 1} for t in tails}


def _norm_and_rotation_settings(dtype: torch.dtype) -> dict[str, Setting]:
    single, both = torch.float32, dict(list(_norm_settings(dtype).items())[:3])
    turns = {n: s for n, s in _turned(_rotation_settings(dtype), "q_tail", "k_tail").items() if n not in ("in_single", "rounds")}
    found = {n: {"compute_dtype": single, "round_dtype": dtype, **s} for n, s in turns.items()}
    tables = {name: torch.linspace(-1, last, 16).reshape(2, 1, 1, 8) for name, last in (("cos", 1.0), ("sin", 2.0))}  # of any position: these change place
    return found | {f"norm_{n}": s for n, s in both.items()} | {"swapped": {**found["halves"], "swap": 1, **tables}}


# Op -> the settings worth testing, as changes to the arguments that `op.inputs` makes: None removes a tensor, a dtype casts it.
SETTINGS: Mapping[str, Callable[[torch.dtype], dict[str, Setting]]] = {
    "rms_norm": _norm_settings,
    "add_rms_norm": _times(_norm_settings),
    "layer_norm": _layer_norm_settings,
    "add_layer_norm": _times(_layer_norm_settings),
    "glu": _glu_settings,
    "rotate": lambda dtype: _turned(_rotation_settings(dtype), "tail"),
    "rope": lambda dtype: _turned(_rotation_settings(dtype), "q_tail", "k_tail"),
    "qk_norm_rope": _norm_and_rotation_settings,
}


def widths(op: Op) -> tuple[int, ...]:
    """Sizes for the dim D; one of them, where the op has no such dim."""
    return WIDTHS if any("D" in d.names for d in op.inputs.tensors.values()) else WIDTHS[:1]


def settings(op: Op, dtype: torch.dtype) -> dict[str, Setting]:
    return SETTINGS[op.name](dtype) if op.name in SETTINGS else {"default": {}}


def arguments(op: Op, setting: Setting, dtype: torch.dtype, device: str, **make: Any) -> dict[str, Any]:
    """Concrete arguments by name; the second row of every tensor with rows is zero."""
    made = op.inputs.make(dtype, device=device, **make)
    for name, change in setting.items():
        casts = isinstance(change, torch.dtype) and isinstance(made.get(name), Tensor)
        made[name] = made[name].to(change) if casts else change
    for value in _matrices(made).values():
        if value.shape[-2] > 1:
            value[..., 1, :] = 0
    return made


def coarsest(arguments: Mapping[str, Any], result: Tensor) -> torch.dtype:
    """The coarsest dtype that the op rounds to on the way to a result."""
    return max((result.dtype, *(a for a in arguments.values() if isinstance(a, torch.dtype))), key=lambda d: torch.finfo(d).eps)


def layouts(op: Op, made: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same arguments in other memory: each layout for the first tensor alone, then for all that have rows, then vectors."""
    matrices = _matrices(made)
    if op.inputs[next(iter(matrices))].any_rank:  # type: ignore[union-attr]
        matrices = {n: t.unflatten(0, (2, 2, 2)) for n, t in matrices.items()}
    for name, lay in LAYOUTS.items():
        for chosen in (list(matrices)[:1], list(matrices)):
            rows = list(matrices.items())
            if name == "ones":
                rows = [(n, t[:1]) for n, t in rows]
            if name.startswith("expanded"):  # values change with the layout; the tensors left alone must still fit
                rows = [(n, t.contiguous()) for n, t in rows]
            yield f"{name}({', '.join(chosen)})", {**made, **{n: lay(t) if n in chosen else t for n, t in rows}}
    vectors = {n: t for n, t in made.items() if isinstance(t, Tensor) and t.ndim == 1}
    for n, t in vectors.items():
        yield f"stepped({n})", {**made, n: _stepped(t)}
        yield f"offset({n})", {**made, n: _slice(t)}
        yield f"expanded({n})", {**made, n: t[:1].expand_as(t)}


def _matrices(made: Mapping[str, Any]) -> dict[str, Tensor]:
    return {n: t for n, t in made.items() if isinstance(t, Tensor) and t.ndim > 1}


def _around(t: Tensor, size: int) -> Tensor:
    """Room for `size` elements per row, all NaN: what a kernel must not read."""
    return torch.full((*t.shape[:-1], size), float("nan"), dtype=t.dtype, device=t.device)


def _slice(t: Tensor) -> Tensor:
    wide, width = _around(t, 3 * t.shape[-1] + 1), t.shape[-1]
    wide[..., width : 2 * width] = t
    return wide[..., width : 2 * width]


def _stepped(t: Tensor) -> Tensor:
    wide = _around(t, 2 * t.shape[-1])
    wide[..., ::2] = t
    return wide[..., ::2]


def _swapped(t: Tensor) -> Tensor:
    return t.transpose(-3, -2).contiguous().transpose(-3, -2)


def _reversed(t: Tensor) -> Tensor:
    order = (*reversed(range(t.ndim - 1)), t.ndim - 1)
    return t.permute(order).contiguous().permute(order)


def _columns(t: Tensor) -> Tensor:
    return t.transpose(-1, -2).contiguous().transpose(-1, -2)


def _ones(t: Tensor) -> Tensor:
    """A leading dim of size 1 whose stride means nothing."""
    return t.as_strided(t.shape, (12347, *t.stride()[1:]))


LAYOUTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "slice": _slice,
    "swapped": _swapped,
    "reversed": _reversed,
    "columns": _columns,
    "stepped": _stepped,
    "expanded": lambda t: t[:1].expand_as(t),
    "expanded_rows": lambda t: t[..., :1, :].expand_as(t),
    "expanded_values": lambda t: t[..., :1].expand_as(t),
    "ones": _ones,
}
