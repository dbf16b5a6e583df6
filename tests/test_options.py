"""Options: what is accepted, and the sentence that whoever passes nonsense gets."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from hfgraph.errors import ContradictoryOptions, HfgraphError, InvalidOption, UnknownKernel, UnknownOption, UnknownRule
from hfgraph.options import Options


def test_nothing_given_is_the_defaults() -> None:
    assert Options.of(None) == Options.of({}) == Options()


def test_everything_given_is_taken() -> None:
    given = {
        "inductor": True,
        "disable": ["add_rms_norm"],
        "kernels": {"rms_norm": "reference", "add_rms_norm": "triton"},
        "inductor_config": {"max_autotune": True},
        "strict": True,
    }
    options = Options.of(given)
    assert options.disable == ("add_rms_norm",)
    assert options.kernels == given["kernels"]
    assert options.inductor_config == {"max_autotune": True}
    assert options.strict


def test_what_was_given_is_not_changed_afterwards() -> None:
    kernels = {"rms_norm": "reference"}
    options = Options.of({"kernels": kernels})
    kernels["rms_norm"] = "triton"
    assert options.kernels == {"rms_norm": "reference"}


def test_an_options_object_is_taken_as_it_is() -> None:
    options = Options(inductor=False)
    assert Options.of(options) is options


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"inductr": True}, UnknownOption, "hfgraph has no option 'inductr'. Did you mean 'inductor'? Options: disable, inductor, inductor_config,"),
        ({"zzz": 1}, UnknownOption, "hfgraph has no option 'zzz'. Options: disable,"),
        ({3: 1}, UnknownOption, "hfgraph has no option '3'."),
        ([("inductor", True)], InvalidOption, "expected a dict of option names and values."),
        ("inductor", InvalidOption, "option 'options' is 'inductor' (str); expected a dict of option names and values."),
        ({"inductor": 1}, InvalidOption, "option 'inductor' is 1 (int); expected True or False."),
        ({"strict": "yes"}, InvalidOption, "option 'strict' is 'yes' (str); expected True or False."),
        ({"disable": "rms_norm"}, InvalidOption, "option 'disable' is 'rms_norm' (str); expected a list of rule names."),
        ({"disable": [1]}, InvalidOption, "option 'disable' is [1] (list); expected a list of rule names."),
        ({"disable": None}, InvalidOption, "option 'disable' is None (NoneType); expected a list of rule names."),
        ({"disable": ["rms_nrm"]}, UnknownRule, "hfgraph has no rule 'rms_nrm'. Did you mean 'rms_norm'? Rules: add_rms_norm, "),
        ({"kernels": ["rms_norm"]}, InvalidOption, "option 'kernels' is ['rms_norm'] (list); expected a dict of op names and implementation names."),
        ({"kernels": {"rms_norm": None}}, InvalidOption, "expected a dict of op names and implementation names."),
        ({"kernels": {"attention": "triton"}}, InvalidOption, "expected ops among add_rms_norm, "),
        ({"kernels": {"rms_norm": "cuda"}}, UnknownKernel, "op 'rms_norm' has no implementation 'cuda'. Implementations: reference, triton."),
        ({"inductor_config": True}, InvalidOption, "option 'inductor_config' is True (bool); expected a dict of Inductor settings."),
        (
            {"inductor": False, "inductor_config": {"max_autotune": True}},
            ContradictoryOptions,
            "options inductor=False and inductor_config contradict each other: without Inductor its settings have no effect.",
        ),
    ],
)
def test_nonsense_is_refused_in_words(given: Any, error: type[HfgraphError], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        Options.of(given)


def test_a_mode_needs_inductor() -> None:
    with pytest.raises(ContradictoryOptions, match="mode='max-autotune' contradict each other: a mode is a set of Inductor's settings"):
        Options.of({"inductor": False}, mode="max-autotune")
    assert not Options.of({"inductor": False}, mode="default").inductor
    assert Options.of({}, mode="max-autotune").inductor


def test_every_error_is_one_of_ours_and_a_value_error() -> None:
    for error in (UnknownOption, InvalidOption, ContradictoryOptions, UnknownRule, UnknownKernel):
        assert issubclass(error, HfgraphError)
        assert issubclass(error, ValueError)


def test_the_message_reaches_the_user_of_torch_compile() -> None:
    compiled = torch.compile(lambda x: x + 1, backend="hfgraph", options={"inductr": False})
    with pytest.raises(BackendCompilerFailed, match=r"UnknownOption: hfgraph has no option 'inductr'\. Did you mean 'inductor'"):
        compiled(torch.ones(2))


def test_only_what_changes_a_graph_is_in_the_digest() -> None:
    def digest(**given: Any) -> str:
        return Options.of(given).digest()

    assert digest(strict=True) == digest()
    assert digest(disable=["rms_norm"]) != digest()
    assert digest(disable=["rms_norm", "add_rms_norm"]) == digest(disable=("add_rms_norm", "rms_norm"))
    assert digest(kernels={"rms_norm": "reference"}) != digest()
