"""Every failure a user can meet, as a named class: what was found, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HfgraphError(Exception):
    """Base class of all errors that hfgraph raises on purpose."""


class Fault:
    """Marks the errors that are a bug, of hfgraph's or of a rule's: nobody asked for what went wrong, and the model can run without."""


class HfgraphWarning(UserWarning):
    """Base class of all warnings that hfgraph gives."""


def _listed(names: Iterable[object]) -> str:
    return ", ".join(sorted(str(n) for n in names)) or "none"


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


# --- options -----------------------------------------------------------------------------------------


class UnknownOption(HfgraphError, ValueError):
    """An option name that does not exist."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        known = list(known)
        super().__init__(f"hfgraph has no option {name!r}.{_nearest(name, known)} Options: {_listed(known)}.")


class InvalidOption(HfgraphError, ValueError):
    """An option with a value of the wrong type or outside its range."""

    def __init__(self, name: str, value: object, expected: str) -> None:
        super().__init__(f"option {name!r} is {value!r} ({type(value).__name__}); expected {expected}.")


class ContradictoryOptions(HfgraphError, ValueError):
    """Options that cannot hold together."""

    def __init__(self, first: str, second: str, why: str) -> None:
        super().__init__(f"options {first} and {second} contradict each other: {why}.")


class UnknownRule(HfgraphError, ValueError):
    """A rule name, given in an option, that does not exist."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        known = list(known)
        super().__init__(f"hfgraph has no rule {name!r}.{_nearest(name, known)} Rules: {_listed(known)}.")


class UnknownKernel(HfgraphError, ValueError):
    """An explicit request for an implementation that the op does not have."""

    def __init__(self, op: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"op {op!r} has no implementation {name!r}. Implementations: {_listed(known)}.")


class KernelRefused(HfgraphError, RuntimeError):
    """An implementation was asked for by name, but cannot take these inputs."""

    def __init__(self, op: str, name: str, reason: str) -> None:
        super().__init__(
            f"option kernels={{{op!r}: {name!r}}} asks for an implementation that cannot run here: {reason}. "
            "Remove the entry to let hfgraph choose, or use 'reference'."
        )


# --- definitions: ops, rules -------------------------------------------------------------------------


class InvalidOp(HfgraphError, TypeError):
    """An op definition that cannot be registered."""


class InvalidRule(Fault, HfgraphError, TypeError):
    """A rule definition that the engine cannot use."""

    def __init__(self, rule: str, found: str, do: str) -> None:
        super().__init__(f"rule {rule!r}: {found}. {do}.")


class IllegalGraph(Fault, HfgraphError, RuntimeError):
    """A pass left a graph that its stage does not allow: a bug in hfgraph or in a rule."""

    def __init__(self, stage: str, problem: str) -> None:
        super().__init__(f"after stage {stage!r} the graph is not legal: {problem}. Please report this with the model's name.")


# --- inputs ------------------------------------------------------------------------------------------


class MetaModel(HfgraphError, ValueError):
    """A model without storage was compiled."""

    def __init__(self, names: list[str]) -> None:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        super().__init__(
            f"{len(names)} tensors are on the meta device and hold no values ({shown}). "
            "Load the weights first, e.g. with from_pretrained(...) or model.to_empty(device=...) and load_state_dict(...)."
        )


class NotAModel(HfgraphError, TypeError):
    """Something other than a module or a function was given to a public function."""

    def __init__(self, function: str, found: object) -> None:
        super().__init__(
            f"hfgraph.{function} takes a torch.nn.Module or a function as its first argument, not {type(found).__name__}. "
            f"Load a model first, e.g. AutoModelForCausalLM.from_pretrained(name), or run `hfgraph {function} NAME`."
        )


class NotAvailable(HfgraphError, NotImplementedError):
    """Something that the public surface names and this version does not do."""

    def __init__(self, what: str, why: str, do: str) -> None:
        super().__init__(f"{what} is not available in this version: {why}; {do}.")


class NothingCompiled(HfgraphError, RuntimeError):
    """The call did not reach a graph."""

    def __init__(self, what: str, limit: int | None = None) -> None:
        """`limit` of recompilations, where it was reached before."""
        if limit is not None:
            super().__init__(
                f"{what} ran without compiling any graph: Dynamo has compiled this code {limit} times before, and that is its limit "
                "(torch._dynamo.config.recompile_limit). Call torch._dynamo.reset() first, which forgets all that was compiled."
            )
            return
        super().__init__(
            f"{what} ran without compiling any graph: Dynamo found nothing to trace. "
            "Check that torch.compile is not disabled (TORCH_COMPILE_DISABLE, torch.compiler.disable) and that the call runs tensors."
        )


class ModelNotFound(HfgraphError, ValueError):
    """The command line was given a model that cannot be loaded."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot load the model {name!r}: {reason} Give a local folder with config.json, or a hub name such as 'Qwen/Qwen2.5-0.5B-Instruct'.")


class CannotMakeInputs(HfgraphError, ValueError):
    """The command line has no inputs for a model: it makes tokens, at random or from a text."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(
            f"cannot make inputs for {name!r}: {why}. "
            "Change --prompt, --length or --batch, or give inputs of your own in Python: hfgraph.verify(model, **inputs)."
        )


# --- versions ----------------------------------------------------------------------------------------


class VersionTooOld(HfgraphError, ImportError):
    """A dependency older than what hfgraph works with."""

    def __init__(self, package: str, found: str, needed: str) -> None:
        super().__init__(f"hfgraph needs {package} >= {needed}, found {package} {found}. Upgrade it: pip install '{package}>={needed}'.")


class VersionUntested(HfgraphWarning):
    """A dependency newer than what hfgraph was tested with."""


class CompiledModuleBypassed(HfgraphWarning):
    """torch.compile(model).generate() runs the uncompiled module."""


class NotRewritten(HfgraphWarning):
    """hfgraph could not work on a graph and handed it to Inductor as it was."""


class NotStacked(HfgraphWarning):
    """Weights that were stacked have been replaced by some that cannot be; they are copied at every call."""


# --- what is written ---------------------------------------------------------------------------------


class CannotWrite(HfgraphError, OSError):
    """A file that was asked for cannot be written."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"cannot write {path!r}: {why}. Give a file in a folder that exists, e.g. report.html.")


# --- bench -------------------------------------------------------------------------------------------


class UnknownModel(HfgraphError, ValueError):
    """A model's name that is neither a preset nor a folder, and has not the form of a hub name."""

    def __init__(self, name: str, presets: Iterable[str]) -> None:
        presets = list(presets)
        super().__init__(
            f"there is no preset {name!r} and no folder of that name.{_nearest(name, presets)} "
            f"Presets: {', '.join(presets)}. A hub name has the form 'owner/name'."
        )


class UnknownTask(HfgraphError, ValueError):
    """A task that the bench does not have."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        known = list(known)
        super().__init__(f"the bench has no task {name!r}.{_nearest(name, known)} Tasks: {', '.join(known)}.")


class UnknownSystem(HfgraphError, ValueError):
    """A system that the bench does not have, or not on this device."""

    def __init__(self, name: str, known: Iterable[str], device: str) -> None:
        known = list(known)
        super().__init__(f"the bench has no system {name!r} on {device}.{_nearest(name, known)} Systems: {', '.join(known)}.")


class SabotageNeedsOurs(HfgraphError, ValueError):
    """A rule is to be falsified, and what applies rules does not run."""

    def __init__(self, rule: str) -> None:
        super().__init__(f"--sabotage {rule} falsifies a rule of hfgraph, which is not among the systems. Add hfgraph to --systems.")


class RuleNotApplied(HfgraphError, ValueError):
    """A rule is to be falsified, and the model has no place for it."""

    def __init__(self, rule: str, applied: Iterable[str]) -> None:
        super().__init__(f"rule {rule!r} has nothing to do in this model, so falsifying it shows nothing. Rules applied: {_listed(applied)}.")


class UnknownArchitecture(HfgraphError, ValueError):
    """A name that is no entry of the zoo."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        known = list(known)
        super().__init__(f"the zoo has no architecture {name!r}.{_nearest(name, known)} It has {len(known)}: hfgraph zoo --list")


class NotACoverageTable(HfgraphError, ValueError):
    """A file that `hfgraph zoo` was to go on with, and did not write."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path!r} is no table of hfgraph zoo ({why}). Name another file, or remove this one.")


class NotInAClone(HfgraphError, ValueError):
    """A model that comes with the repository was named, and the repository is not here."""

    def __init__(self, name: str, folder: str) -> None:
        super().__init__(
            f"the preset {name!r} is a folder of hfgraph's repository, and {folder!r} is not there. "
            "Run from a clone (pip install --editable .), or name another preset."
        )


class NoSuchDevice(HfgraphError, ValueError):
    """A device that torch does not see."""

    def __init__(self, device: str) -> None:
        super().__init__(f"there is no device {device!r}: torch sees no CUDA device. Leave --device out, or give --device cpu.")


class CannotBench(HfgraphError, ValueError):
    """A model that the bench's tasks do not fit."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"cannot bench {name!r}: {why}. The tasks read and write text: name a causal language model.")


class DoesNotFit(HfgraphError, ValueError):
    """More memory is needed than there is."""

    def __init__(self, what: str, needed: float, free: float, do: str) -> None:
        super().__init__(f"{what} needs about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free. {do}.")


class WorkerDied(HfgraphError, RuntimeError):
    """A process of the bench ended before its work was done."""

    def __init__(self, system: str, doing: str, lines: str) -> None:
        super().__init__(f"the process of {system!r} died ({doing}). The last that it said:\n{lines or '(nothing)'}")


class WorkerFailed(HfgraphError, RuntimeError):
    """A process of the bench says why it cannot go on."""

    def __init__(self, system: str, doing: str, reason: str) -> None:
        super().__init__(f"the process of {system!r} cannot go on ({doing}): {reason}")


class MissingPackage(HfgraphError, ImportError):
    """Something was asked for that needs a package which is not installed."""

    def __init__(self, package: str, what: str, do: str) -> None:
        super().__init__(f"{what} needs {package}, which is not installed. Install it: {do}")
