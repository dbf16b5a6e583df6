"""The pages on options and the command line, from the code that reads them."""

from __future__ import annotations

import argparse
import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields

from _generate.registry import Registry
from _generate.text import code, docstring, page, sentence, table
from hfgraph.commands import Command

_KINDS = {"bool": "`True` or `False`", "tuple[str, ...]": "a list of names", "Mapping[str, str]": "a dict of names", "Mapping[str, Any]": "a dict"}
# Where the values that an option takes are found.
_SEE = {
    "disable": "The names are those of the [rules](rules/index.md).",
    "kernels": "The page of each [op](ops/index.md) says which implementations it has.",
}


def pages(registry: Registry) -> dict[str, str]:
    """Both pages, by path."""
    return {"options.md": options(registry.options), "command-line.md": command_line(registry.commands)}


# --- options -----------------------------------------------------------------------------------------


def options(described: type) -> str:
    """Every field of `Options`.

    Raises:
        KeyError: an option is not documented.
    """
    said = docstring(described).args
    parts = [
        "# Options",
        code('model.compile(backend="hfgraph", options={"disable": ["add_rms_norm"], "strict": True})'),
        "`torch.compile` takes them in the same way. An option that does not exist, has a wrong value, or contradicts another one is an error that says "
        "what exists. The arguments `dynamic`, `fullgraph` and `mode` are torch's own, and work.",
    ]
    for f in fields(described):
        kind = f"Takes {_KINDS.get(str(f.type), f'`{f.type}`')}. Default: `{_default(f)}`."
        parts += [f"## `{f.name}` {{ #{f.name} }}", f"{sentence(said[f.name])} {_SEE.get(f.name, '')}".rstrip(), kind]
    return page(*parts)


def _default(option: Field[object]) -> object:
    return option.default if option.default_factory is MISSING else option.default_factory()


# --- the command line --------------------------------------------------------------------------------


def command_line(commands: Iterable[Command]) -> str:
    """Every command, from its parser."""
    commands = tuple(commands)
    parts = [
        "# Command line",
        "Every command has `--help`, which ends with an example. `hfgraph --version` prints versions.",
        table(("command", "in short"), [(f"[`hfgraph {c.name}`](#{c.name})", _marked(c.short)) for c in commands]),
    ]
    for command in commands:
        parser = argparse.ArgumentParser(prog=f"hfgraph {command.name}", add_help=False)
        command.arguments(parser)
        text, _, status = command.text.partition("exit status:")
        parts += [
            f"## `hfgraph {command.name}` {{ #{command.name} }}",
            *map(_paragraph, text.strip().split("\n\n")),
            code(_usage(parser), "text"),
            table(("argument", "what it is"), _arguments(parser)),
            *_status(status),
            "For example:",
            code(command.example, "sh"),
        ]
    return page(*parts)


def _status(text: str) -> list[str]:
    """`0 holds, 1 does not hold` as a line."""
    ways = [w.strip().partition(" ") for w in " ".join(text.split()).split(",")]
    return ["Exit status: " + ", ".join(f"`{number}` {words}" if number.isdigit() else f"{number} {words}" for number, _, words in ways) + "."] if text else []


def _usage(parser: argparse.ArgumentParser) -> str:
    """The usage at one width, whatever the terminal's."""
    formatter = argparse.HelpFormatter(parser.prog, width=88)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    return re.sub(r"\x1b\[[\d;]*m", "", formatter.format_help())  # newer Pythons colour it


def _arguments(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    formatter = argparse.HelpFormatter(parser.prog)
    for action in parser._actions:
        value = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else "" if action.nargs == 0 else action.dest.upper())
        value = " ".join(value) if isinstance(value, tuple) else value
        shown = " ".join((*action.option_strings[-1:], *([value] if value else [])))
        yield f"`{shown}`", _marked(formatter._expand_help(action) if action.help else "")


def _paragraph(text: str) -> str:
    """A paragraph of a help page; lines that all begin with `name:` are a list."""
    lines = text.splitlines()
    if len(lines) > 1 and all(re.match(r"[\w ,]+: ", line) for line in lines):
        return "\n".join(f"- {_marked(line)}" for line in lines)
    return _marked(text)


def _marked(text: str) -> str:
    """Plain text of a help page as Markdown, with flags as code."""
    return re.sub(r"(?<![\w`-])--[a-z][a-z-]*", r"`\g<0>`", html.escape(" ".join(text.split()), quote=False))
