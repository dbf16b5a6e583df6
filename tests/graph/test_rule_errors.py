"""Rules that the engine cannot use are refused when they are traced, in words that say what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hfgraph.errors import HfgraphError, InvalidRule
from hfgraph.graph.inputs import Dtype, Inputs, Scalar
from hfgraph.graph.pattern import Pattern, trace
from hfgraph.graph.rule import Rule
from hfgraph.graph.values import val


def traced(pattern: Callable[..., Any], inputs: Inputs, *, replacement: bool = False, dtype: torch.dtype = torch.float32) -> Pattern:
    """`pattern` traced as the pattern of a rule, or as its replacement."""
    rule = Rule(pattern, pattern, inputs, name="made_up")
    return trace(rule, pattern, dtype, whole=not replacement)


def refused(pattern: Callable[..., Any], inputs: Inputs, **more: Any) -> str:
    with pytest.raises(InvalidRule) as caught:
        traced(pattern, inputs, **more)
    assert isinstance(caught.value, HfgraphError)
    return str(caught.value)


X, EPS = Inputs(x="... D"), Inputs(x="... D", eps=Scalar(1e-6))


# --- scalars and dtypes that the pattern does not carry -----------------------------------------------


def test_an_unused_scalar() -> None:
    def pattern(x, eps):
        return x.cos() * 2

    assert refused(pattern, EPS) == ("rule 'made_up': pattern does not carry eps as written (was it folded into another number?). Use each scalar as it is.")


@pytest.mark.parametrize("fold", [lambda eps: eps * 2, lambda eps: -eps, lambda eps: eps + 1, lambda eps: 1 / eps, lambda eps: float(int(eps))])
def test_a_folded_scalar(fold: Callable[[float], float]) -> None:
    def pattern(x, eps):
        return x.cos() + fold(eps)

    assert refused(pattern, EPS) == ("rule 'made_up': pattern does not carry eps as written (was it folded into another number?). Use each scalar as it is.")


def test_all_that_is_missing_is_named_and_only_that() -> None:
    def pattern(x, a, b, c, d):
        return x * b

    inputs = Inputs(x="... D", a=Scalar(1.0), b=Scalar(2.0), c=Dtype(torch.float32), d=Scalar(3))
    assert refused(pattern, inputs).startswith("rule 'made_up': pattern does not carry a, c, d as written")


def test_a_number_that_a_spelling_swallows() -> None:
    def pattern(x, p):
        return torch.dropout(x, p, False).cos()

    assert "does not carry p as written" in refused(pattern, Inputs(x="... D", p=Scalar(0.1)))


def test_a_replacement_may_leave_a_scalar_out() -> None:
    def pattern(x, eps):
        return x.cos() * 2

    assert len(traced(pattern, EPS, replacement=True).nodes) == 2


def test_a_scalar_as_it_is() -> None:
    def pattern(x, eps):
        return x.cos() + eps

    assert len(traced(pattern, EPS).nodes) == 2


# --- results ------------------------------------------------------------------------------------------


def _input_itself(x):
    return x


def _input_beside(x):
    return x.cos(), x


def _input_after_a_no_op(x):
    return x.to(x.dtype).contiguous()


def _number(x):
    return x.cos(), 3.0


def _nothing(x):
    x.cos()


@pytest.mark.parametrize("pattern", [_input_itself, _input_beside, _input_after_a_no_op, _number, _nothing])
@pytest.mark.parametrize("replacement", [False, True])
def test_what_is_returned_but_not_computed(pattern: Callable[..., Any], replacement: bool) -> None:
    assert refused(pattern, X, replacement=replacement) == (
        f"rule 'made_up': {pattern.__name__} returns one of its inputs or a constant. Return computed tensors only."
    )


def test_disconnected_outputs() -> None:
    def pattern(x, y):
        return x.cos(), y.sin()

    assert refused(pattern, Inputs(x="... D", y="... D")) == (
        "rule 'made_up': the outputs are connected only through the inputs. Write one rule for each output and pair them in a later one."
    )


def test_outputs_that_meet_in_an_input_are_disconnected() -> None:
    def pattern(x, w):
        return x.cos() * w, x.sin() * w

    assert "connected only through the inputs" in refused(pattern, Inputs(x="... D", w="D"))


def test_connected_outputs_and_disconnected_ones_of_a_replacement() -> None:
    def connected(x):
        y = x.exp()
        return y.cos(), y.sin()

    def apart(x):
        return x.cos(), x.sin()

    assert len(traced(connected, X).outputs) == len(traced(apart, X, replacement=True).outputs) == 2


# --- functions that cannot be traced ------------------------------------------------------------------


def _branches(x):
    return x.cos() if x.sum() > 0 else x.sin()


def _raises(x):
    raise ValueError("no such thing")


def _wrong_arity(x, y):
    return x + y


def test_a_branch_on_a_value() -> None:
    found = refused(_branches, X)
    assert found.startswith("rule 'made_up': _branches cannot be traced (") and found.endswith("). Make it a plain function of x.")


def test_an_error_inside_keeps_its_words_and_its_cause() -> None:
    with pytest.raises(InvalidRule) as caught:
        traced(_raises, X)
    assert str(caught.value) == "rule 'made_up': _raises cannot be traced (ValueError: no such thing). Make it a plain function of x."
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("replacement", [False, True])
def test_parameters_that_are_not_the_described_ones(replacement: bool) -> None:
    found = refused(_wrong_arity, EPS, replacement=replacement)
    assert found.startswith("rule 'made_up': _wrong_arity cannot be traced (TypeError: ")
    assert "unexpected keyword argument 'eps'" in found and found.endswith("). Make it a plain function of x, eps.")


# --- sizes --------------------------------------------------------------------------------------------


def _two_widths(x, y):
    return x + y


def test_two_sizes_that_must_be_one() -> None:
    """Adding vectors of two widths: letters that differ are sizes that differ."""
    found = refused(_two_widths, Inputs(x="D", y="E"))
    assert found.startswith("rule 'made_up': _two_widths cannot be traced (RuntimeError: The size of tensor a (s")
    assert found.endswith("). Make it a plain function of x, y.")


def test_a_fixed_size() -> None:
    def pattern(x):
        return x.cos() * int(x.shape[-1])

    found = refused(pattern, X)
    assert found.startswith("rule 'made_up': tracing pattern fixed a size (s")
    assert found.endswith(" = 96). Use sizes as they are, and put the dtype that arithmetic is done in first among the dtypes.")


def test_a_fixed_size_does_not_spoil_the_next_rule() -> None:
    """All patterns share their symbols; one that is refused must not leave its guards behind."""

    def fixing(x):
        return x.cos() * int(x.shape[-1])

    def sound(x):
        return x.cos() * x.shape[-1]

    first = str([(n.target, n.args) for n in traced(sound, X).nodes])
    refused(fixing, X)
    assert str([(n.target, n.args) for n in traced(sound, X).nodes]) == first
    assert traced(sound, X).sizes


def test_a_fixed_size_does_not_spoil_the_rules_before_it() -> None:
    def fixing(x):
        return x.cos() * int(x.shape[-1])

    rule = Rule(lambda x: x.cos() * x.shape[-1], lambda x: x.cos() * x.shape[-1], X, name="earlier")
    pattern = trace(rule, rule.pattern, torch.float32, whole=True)
    before = [str(s) for n in pattern.nodes for s in getattr(val(n), "shape", ())]
    assert any(not s.isdigit() for s in before)
    refused(fixing, X)
    assert [str(s) for n in pattern.nodes for s in getattr(val(n), "shape", ())] == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_refusals_do_not_depend_on_the_dtype(dtype: torch.dtype) -> None:
    def pattern(x, eps):
        return x.cos() + eps * 2

    assert "does not carry eps" in refused(pattern, EPS, dtype=dtype)


# --- the test of the tests ----------------------------------------------------------------------------


def test_a_sound_rule_is_not_refused() -> None:
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        refused(lambda x: x.cos(), X)
