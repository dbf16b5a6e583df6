"""Formulas: a line of Python-like mathematics in a docstring, as MathML, which browsers draw by themselves."""

# ruff: noqa: RUF001  (Greek letters and a true minus are meant)

from __future__ import annotations

import ast
import html
import re
from collections.abc import Sequence

_GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "eps": "ε", "theta": "θ", "mu": "μ", "sigma": "σ", "pi": "π", "phi": "φ"}
_SIGN = {ast.Add: "+", ast.Sub: "−", ast.Mult: "·", ast.MatMult: "@", ast.Mod: "mod"}
# The higher, the tighter; what binds looser than its surroundings gets parentheses.
_TIGHT = {ast.Add: 1, ast.Sub: 1, ast.Mult: 2, ast.MatMult: 2, ast.Mod: 2, ast.Div: 2, ast.Pow: 3}
_ATOM = 4


def mathml(formula: str) -> str | None:
    """A formula as a MathML block; None where it is not one that can be drawn.

    Example: "x / sqrt(mean(x^2) + eps)".
    """
    try:
        tree = ast.parse(formula.strip().replace("^", "**"), mode="eval").body
        drawn = _drawn(tree)
    except (SyntaxError, NotImplementedError):
        return None
    return f'<div class="formula"><math display="block">{drawn}</math></div>'


def in_text(text: str) -> str | None:
    """The formula in a sentence: its first code that is more than a name."""
    return next((code for code in re.findall(r"`([^`]+)`", text) if re.search(r"[^\w.]", code)), None)


def _drawn(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=value):
            return "<mo>…</mo>" if value is ... else f"<mn>{html.escape(str(value))}</mn>"
        case ast.Name(id=name):
            return f"<mi>{_GREEK.get(name, html.escape(name))}</mi>"
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return f"<mrow><mo>−</mo>{_within(operand, 2)}</mrow>"
        case ast.BinOp():
            return _operation(node)
        case ast.Call(func=function, args=args, keywords=keywords):
            return _call(function, args, keywords)
        case ast.Subscript(value=value, slice=index):
            return f"<msub>{_within(value, _ATOM)}<mrow>{_drawn(index)}</mrow></msub>"
        case ast.Attribute(value=value, attr=attribute):
            return f"<mrow>{_within(value, _ATOM)}<mo>.</mo><mi>{attribute}</mi></mrow>"
        case ast.Tuple(elts=elements):
            return _listed([_drawn(e) for e in elements])
    raise NotImplementedError(ast.dump(node))


def _operation(node: ast.BinOp) -> str:
    kind = type(node.op)
    if kind is ast.Div:
        return f"<mfrac><mrow>{_drawn(node.left)}</mrow><mrow>{_drawn(node.right)}</mrow></mfrac>"
    if kind is ast.Pow:
        return f"<msup>{_within(node.left, _ATOM)}<mrow>{_drawn(node.right)}</mrow></msup>"
    if kind not in _SIGN:
        raise NotImplementedError(ast.dump(node))
    tight = _TIGHT[kind]
    return f"<mrow>{_within(node.left, tight)}<mo>{_SIGN[kind]}</mo>{_within(node.right, tight + (kind is ast.Sub))}</mrow>"


def _call(function: ast.expr, args: Sequence[ast.expr], keywords: Sequence[ast.keyword]) -> str:
    name = function.id if isinstance(function, ast.Name) else ""
    if name == "sqrt" and len(args) == 1:
        return f"<msqrt>{_drawn(args[0])}</msqrt>"
    if name == "abs" and len(args) == 1:
        return f"<mrow><mo>|</mo>{_drawn(args[0])}<mo>|</mo></mrow>"
    given = [_drawn(a) for a in args] + [f"<mi>{k.arg}</mi><mo>=</mo>{_drawn(k.value)}" for k in keywords]
    return f"<mrow>{_drawn(function)}<mo>&#x2061;</mo>{_listed(given)}</mrow>"


def _listed(parts: Sequence[str]) -> str:
    return f"<mrow><mo>(</mo>{'<mo>,</mo>'.join(parts)}<mo>)</mo></mrow>"


def _within(node: ast.expr, tight: int) -> str:
    """A part of a term, in parentheses where it binds looser. A fraction is drawn with a bar, and needs none but under a power."""
    drawn = _drawn(node)
    if isinstance(node, ast.BinOp):
        mine = _TIGHT.get(type(node.op), 0)
        loose = mine < tight and not (isinstance(node.op, ast.Div) and tight < _ATOM)
    else:
        loose = isinstance(node, ast.UnaryOp) and tight > 1
    return f"<mrow><mo>(</mo>{drawn}<mo>)</mo></mrow>" if loose else drawn
