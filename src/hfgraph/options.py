"""Every option, in one validated dataclass: `torch.compile(model, backend="hfgraph", options={...})`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hfgraph.errors import ContradictoryOptions, InvalidOption, UnknownKernel, UnknownOption, UnknownRule


@dataclass(frozen=True)
class Options:
    """What a user can set.

    Attributes:
        inductor: compile the rewritten graph with Inductor. False runs it as it is: fast to build, for tests.
        disable: names of rules that are not applied; "merged_linear" keeps linears of one input apart.
        merge_always: merge linears of one input also where `benchmarks/merged.py` found no gain.
        kernels: for an op, by name, the implementation to use in place of the automatic choice: "triton", or
            "reference" for none. One that cannot run is an error.
        inductor_config: settings of ``torch._inductor.config`` for this compilation.
        strict: raise where hfgraph would hand a graph to Inductor unrewritten because of an error of its own.
    """

    inductor: bool = True
    disable: tuple[str, ...] = ()
    merge_always: bool = False
    kernels: Mapping[str, str] = field(default_factory=dict)
    inductor_config: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False

    @staticmethod
    def of(given: Mapping[str, Any] | Options | None, mode: str | None = None) -> Options:
        """Validate what a user passed.

        Raises:
            UnknownOption, InvalidOption, UnknownRule, UnknownKernel, ContradictoryOptions.
        """
        if isinstance(given, Options):
            return given
        if given is not None and not isinstance(given, Mapping):
            raise InvalidOption("options", given, "a dict of option names and values")
        known = [f.name for f in fields(Options)]
        for name in given or {}:
            if name not in known:
                raise UnknownOption(str(name), known)
        options = Options(**_normalised(dict(given or {})))
        _check_names(options)
        if not options.inductor and options.inductor_config:
            raise ContradictoryOptions("inductor=False", "inductor_config", "without Inductor its settings have no effect")
        if not options.inductor and mode not in (None, "default"):
            raise ContradictoryOptions("inductor=False", f"mode={mode!r}", "a mode is a set of Inductor's settings")
        return options

    def digest(self) -> str:
        """The options that change a graph, as text for cache keys."""
        return json.dumps({"disable": sorted(self.disable), "merge_always": self.merge_always, "kernels": dict(sorted(self.kernels.items()))})


def _normalised(given: dict[str, Any]) -> dict[str, Any]:
    for name in ("inductor", "merge_always", "strict"):
        if name in given and not isinstance(given[name], bool):
            raise InvalidOption(name, given[name], "True or False")
    if "disable" in given:
        names = given["disable"]
        if isinstance(names, str) or not isinstance(names, list | tuple | set | frozenset) or not all(isinstance(n, str) for n in names):
            raise InvalidOption("disable", names, "a list of rule names")
        given["disable"] = tuple(names)
    for name, what in (("kernels", "a dict of op names and implementation names"), ("inductor_config", "a dict of Inductor settings")):
        if name in given:
            table = given[name]
            if not isinstance(table, Mapping) or not all(isinstance(k, str) for k in table):
                raise InvalidOption(name, table, what)
            if name == "kernels" and not all(isinstance(v, str) for v in table.values()):
                raise InvalidOption(name, table, what)
            given[name] = dict(table)
    return given


def _check_names(options: Options) -> None:
    if options.disable:
        from hfgraph.rewrites import all_rules

        known = sorted([*(r.name for r in all_rules()), "merged_linear"])
        for name in options.disable:
            if name not in known:
                raise UnknownRule(name, known)
    if options.kernels:
        from hfgraph.kernels import all_ops

        ops = all_ops()
        for name, kernel in options.kernels.items():
            if name not in ops:
                raise InvalidOption("kernels", {name: kernel}, f"ops among {', '.join(sorted(ops))}")
            if kernel != "reference" and kernel not in ops[name].implementations:
                raise UnknownKernel(name, kernel, [*ops[name].implementations, "reference"])
