"""Every sentence that a user can see: what was found, what was expected, what to do."""

from __future__ import annotations

import inspect

import pytest

from hfgraph import errors
from hfgraph.errors import HfgraphError, HfgraphWarning

MESSAGES: dict[HfgraphError, str] = {
    errors.UnknownOption("inductr", ["inductor", "disable"]): "hfgraph has no option 'inductr'. Did you mean 'inductor'? Options: disable, inductor.",
    errors.InvalidOption("strict", 1, "True or False"): "option 'strict' is 1 (int); expected True or False.",
    errors.ContradictoryOptions("a", "b", "both cannot be"): "options a and b contradict each other: both cannot be.",
    errors.UnknownRule("rms_nrm", ["rms_norm"]): "hfgraph has no rule 'rms_nrm'. Did you mean 'rms_norm'? Rules: rms_norm.",
    errors.UnknownKernel("rms_norm", "cuda", ["triton", "reference"]): "op 'rms_norm' has no implementation 'cuda'. Implementations: reference, triton.",
    errors.KernelRefused("rms_norm", "triton", "it runs on cuda, the tensors are on cpu"): (
        "option kernels={'rms_norm': 'triton'} asks for an implementation that cannot run here: it runs on cuda, the tensors are on cpu. "
        "Remove the entry to let hfgraph choose, or use 'reference'."
    ),
    errors.InvalidOp("op 'x' cannot be given a schema: why"): "op 'x' cannot be given a schema: why",
    errors.InvalidRule("glu", "the pattern returns one of its inputs", "Return computed tensors only"): (
        "rule 'glu': the pattern returns one of its inputs. Return computed tensors only."
    ),
    errors.IllegalGraph("fuse", "mul has no recorded value"): (
        "after stage 'fuse' the graph is not legal: mul has no recorded value. Please report this with the model's name."
    ),
    errors.MetaModel(["lm_head.weight"]): (
        "1 tensors are on the meta device and hold no values (lm_head.weight). "
        "Load the weights first, e.g. with from_pretrained(...) or model.to_empty(device=...) and load_state_dict(...)."
    ),
    errors.NotAModel("verify", "gpt2"): (
        "hfgraph.verify takes a torch.nn.Module or a function as its first argument, not str. "
        "Load a model first, e.g. AutoModelForCausalLM.from_pretrained(name), or run `hfgraph verify NAME`."
    ),
    errors.NotAvailable("verify(tp=...)", "hfgraph does not shard models yet", "leave tp out"): (
        "verify(tp=...) is not available in this version: hfgraph does not shard models yet; leave tp out."
    ),
    errors.NothingCompiled("explain"): (
        "explain ran without compiling any graph: Dynamo found nothing to trace. "
        "Check that torch.compile is not disabled (TORCH_COMPILE_DISABLE, torch.compiler.disable) and that the call runs tensors."
    ),
    errors.NothingCompiled("explain", 8): (
        "explain ran without compiling any graph: Dynamo has compiled this code 8 times before, and that is its limit "
        "(torch._dynamo.config.recompile_limit). Call torch._dynamo.reset() first, which forgets all that was compiled."
    ),
    errors.ModelNotFound("gpt3", "No such repository."): (
        "cannot load the model 'gpt3': No such repository. Give a local folder with config.json, or a hub name such as 'Qwen/Qwen2.5-0.5B-Instruct'."
    ),
    errors.CannotMakeInputs("vit", "the model reads pixel_values, and the command line makes tokens only"): (
        "cannot make inputs for 'vit': the model reads pixel_values, and the command line makes tokens only. "
        "Change --prompt, --length or --batch, or give inputs of your own in Python: hfgraph.verify(model, **inputs)."
    ),
    errors.CannotWrite("out/report.html", "the folder '/x/out' does not exist"): (
        "cannot write 'out/report.html': the folder '/x/out' does not exist. Give a file in a folder that exists, e.g. report.html."
    ),
    errors.UnknownModel("smolm2", ["smollm2", "qwen3"]): (
        "there is no preset 'smolm2' and no folder of that name. Did you mean 'smollm2'? Presets: smollm2, qwen3. A hub name has the form 'owner/name'."
    ),
    errors.UnknownTask("decode", ["prefill", "decode-1"]): "the bench has no task 'decode'. Did you mean 'decode-1'? Tasks: prefill, decode-1.",
    errors.UnknownSystem("egaer", ["eager", "hfgraph"], "cpu"): ("the bench has no system 'egaer' on cpu. Did you mean 'eager'? Systems: eager, hfgraph."),
    errors.SabotageNeedsOurs("rms_norm"): ("--sabotage rms_norm falsifies a rule of hfgraph, which is not among the systems. Add hfgraph to --systems."),
    errors.RuleNotApplied("rms_norm", ["layer_norm"]): (
        "rule 'rms_norm' has nothing to do in this model, so falsifying it shows nothing. Rules applied: layer_norm."
    ),
    errors.UnknownArchitecture("lama", ["llama", "gpt2"]): "the zoo has no architecture 'lama'. Did you mean 'llama'? It has 2: hfgraph zoo --list",
    errors.NotACoverageTable(
        "x.json", "KeyError: 'models'"
    ): "'x.json' is no table of hfgraph zoo (KeyError: 'models'). Name another file, or remove this one.",
    errors.NotInAClone("tinylm", "examples/tinylm"): (
        "the preset 'tinylm' is a folder of hfgraph's repository, and 'examples/tinylm' is not there. "
        "Run from a clone (pip install --editable .), or name another preset."
    ),
    errors.NoSuchDevice("cuda"): "there is no device 'cuda': torch sees no CUDA device. Leave --device out, or give --device cpu.",
    errors.CannotBench("bert", "BertForMaskedLM does not write text"): (
        "cannot bench 'bert': BertForMaskedLM does not write text. The tasks read and write text: name a causal language model."
    ),
    errors.DoesNotFit("the reference", 8e9, 2.5e9, "Name a smaller model"): (
        "the reference needs about 8.0 GB of memory, and 2.5 GB are free. Name a smaller model."
    ),
    errors.WorkerDied("eager", "load", "ValueError: no"): "the process of 'eager' died (load). The last that it said:\nValueError: no",
    errors.WorkerFailed("eager", "load", "it is too old."): "the process of 'eager' cannot go on (load): it is too old.",
    errors.MissingPackage("matplotlib", "--plot", "pip install 'hfgraph[plots]'"): (
        "--plot needs matplotlib, which is not installed. Install it: pip install 'hfgraph[plots]'"
    ),
    errors.VersionTooOld("torch", "2.9.1", "2.11"): "hfgraph needs torch >= 2.11, found torch 2.9.1. Upgrade it: pip install 'torch>=2.11'.",
}


@pytest.mark.parametrize("error", MESSAGES, ids=lambda e: type(e).__name__)
def test_message(error: HfgraphError) -> None:
    assert str(error) == MESSAGES[error]


def classes_without_a_message(known: set[type], covered: set[type]) -> list[str]:
    return sorted(c.__name__ for c in known - covered)


def test_every_error_has_its_message_here() -> None:
    known = {c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, HfgraphError) and c is not HfgraphError}
    missing = classes_without_a_message(known, {type(e) for e in MESSAGES})
    assert not missing, f"add a message to MESSAGES for {', '.join(missing)}"


def test_the_test_above_can_fail() -> None:
    class Forgotten(HfgraphError):
        pass

    assert classes_without_a_message({Forgotten, errors.NotAModel}, {errors.NotAModel}) == ["Forgotten"]


def test_a_long_list_is_cut() -> None:
    assert "(a, b, c and 2 more)" in str(errors.MetaModel(list("abcde")))


def test_no_suggestion_where_nothing_is_near() -> None:
    assert "Did you mean" not in str(errors.UnknownOption("zzz", ["inductor"]))


def test_an_error_is_also_the_builtin_one_that_people_catch() -> None:
    for error in MESSAGES:
        assert isinstance(error, ValueError | TypeError | RuntimeError | ImportError | OSError), type(error).__name__


def test_warnings_can_be_silenced_together() -> None:
    for warning in (errors.VersionUntested, errors.CompiledModuleBypassed, errors.NotRewritten):
        assert issubclass(warning, HfgraphWarning)
        assert issubclass(warning, UserWarning)
