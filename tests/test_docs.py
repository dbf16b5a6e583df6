"""The site: it builds strictly without a network, loads nothing from elsewhere, and shows all that is registered, whatever that is."""

from __future__ import annotations

import dataclasses
import html
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import _generate
import pytest
from _generate import coverage, files, formula, ops, text, usage
from _generate.registry import Registry, defined, made, taken

from hfgraph import cli
from hfgraph.commands import Command
from hfgraph.graph.inputs import Dims, Dtype, Inputs, Scalar, Switch
from hfgraph.graph.op import Op
from hfgraph.graph.recogniser import Recogniser
from hfgraph.graph.rule import Rule
from hfgraph.options import Options
from hfgraph.zoo.record import Miss, Record
from hfgraph.zoo.table import Coverage

ROOT = Path(__file__).parents[1]
REGISTRY = Registry.of_hfgraph()

# `mkdocs` in an interpreter that cannot reach anything.
OFFLINE = """
import socket

def refuse(*_, **__):
    raise OSError("the build asks for the network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli()
"""


@dataclass
class Page(HTMLParser):
    """A built page: its text, the ids in it, what it links to and what it loads."""

    path: Path
    text: str = ""
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {v for n, v in attrs if n in ("id", "name") and v}
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        elif tag == "link" and given.get("rel") not in ("prev", "next"):
            self.loads.append(str(given.get("href")))
        self.loads += [str(given[n]) for n in ("src", "srcset", "poster", "data") if given.get(n)]
        self.loads += addresses(given.get("style") or "")

    def handle_data(self, data: str) -> None:
        self.text += data

    def has(self, words: str) -> bool:
        """Whether a text stands there, but for white space."""
        return squeezed(words) in squeezed(self.text)


def squeezed(words: str) -> str:
    return re.sub(r"\s", "", words)


def addresses(css: str) -> list[str]:
    """What a style sheet loads."""
    return re.findall(r"url\(\s*[\"']?([^\"')]+)", css) + re.findall(r"@import\s+[\"']([^\"']+)", css)


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", OFFLINE, "build", "--strict", "--site-dir", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """Every page but the one for wrong addresses, whose links start at the root of a server."""
    return {p.relative_to(site).as_posix(): Page(p) for p in sorted(site.rglob("*.html")) if p.name != "404.html"}


# --- the site as built -------------------------------------------------------------------------------


def test_the_pages_there_are(pages: dict[str, Page]) -> None:
    named = {"index", "status", "coverage", "options", "command-line", "design", "ops/index", "rules/index", "contributing", "changelog"}
    assert {f"{n}.html" for n in named} <= pages.keys()
    assert pages["design.html"].has("How hfgraph works, and why")
    assert pages["contributing.html"].has("Add a rule")
    assert pages["changelog.html"].has("UNRELEASED")
    assert pages["status.html"].has("Not yet: sharding")
    assert pages["coverage.html"].has("gated_delta_rule") and pages["coverage.html"].has("rg_lru")


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        assert page.loads, name
        assert not (found := outside(site, page.path, page.loads)), f"{name} loads {found}"
    for sheet in site.rglob("*.css"):
        assert not (found := outside(site, sheet, addresses(sheet.read_text(encoding="utf-8")))), f"{sheet.name} loads {found}"
    # The theme's script has one address, of a library that it fetches where a page has such a drawing.
    assert not [name for name, page in pages.items() if 'class="mermaid"' in page.path.read_text(encoding="utf-8")]


def test_every_link_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        for link in page.links:
            if urlsplit(link).scheme not in ("http", "https"):
                assert leads_somewhere(site, page.path, link, pages), f"{name} links to {link}"


def test_these_tests_can_fail(site: Path, pages: dict[str, Page], tmp_path: Path) -> None:
    bad = site / "rules" / "index.html"
    loads = ["//x.org/a.js", "https://x.org/a.css", "/rooted.js", "nosuch.png", "../assets/site.css", "data:image/png;base64,xyz"]
    assert outside(site, bad, loads) == loads[:4]
    assert addresses("@import 'a.css'; b { src: url(c.woff) } d { background: url( \"e.png\" ) }") == ["c.woff", "e.png", "a.css"]
    assert [leads_somewhere(site, bad, link, pages) for link in ("#nosuch", "nosuch.html", "../index.html#install", "#recognise")] == [False, False, True, True]
    (tmp_path / "x.html").write_text("<script src='a.js'></script><link href='b.css' rel=stylesheet><p style='background: url(c.png)' id=d><a href=e>f")
    page = Page(tmp_path / "x.html")
    assert (page.loads, page.links, page.ids, page.has("f")) == (["a.js", "b.css", "c.png"], ["e"], {"d"}, True)


def outside(site: Path, page: Path, loads: list[str]) -> list[str]:
    """What is no file of the site."""
    return [address for address in loads if not address.startswith(("data:", "#")) and not is_file_of(site, page, address)]


def is_file_of(site: Path, page: Path, address: str) -> bool:
    if urlsplit(address).scheme or address.startswith("/"):
        return False
    return target(page, address).is_relative_to(site) and target(page, address).is_file()


def target(page: Path, link: str) -> Path:
    path = unquote(urlsplit(link).path)
    return (page.parent / path).resolve() if path else page


def leads_somewhere(site: Path, page: Path, link: str, pages: dict[str, Page]) -> bool:
    file = target(page, link)
    if file == site:  # the logo's "."
        file = site / "index.html"
    if not file.is_file() or not file.is_relative_to(site):
        return False
    anchor = unquote(urlsplit(link).fragment)
    return not anchor or anchor.startswith("__") or anchor in pages[file.relative_to(site).as_posix()].ids


# --- all that is registered --------------------------------------------------------------------------


@pytest.mark.parametrize("rule", REGISTRY.rules, ids=lambda r: r.name)
def test_every_rule(rule: Rule | Recogniser, pages: dict[str, Page]) -> None:
    page = pages[f"rules/{rule.name}.html"]
    shown = shown_of(rule)
    assert shown
    assert all(page.has(text.body(function)) for function in shown)
    assert page.has((sys.modules[defined(rule).__module__].__doc__ or "").replace("`", ""))
    assert isinstance(rule, Recogniser) or all(page.has(name) for name in rule.inputs)
    assert all(op in REGISTRY.ops for op in made(rule))
    assert made(rule)
    assert pages["rules/index.html"].has(rule.name)
    assert f"{rule.name}.html" in pages["rules/index.html"].links
    for op in made(rule):
        assert pages[f"ops/{op.name}.html"].has(text.body(shown[0]))


def shown_of(rule: Rule | Recogniser) -> list[Callable[..., Any]]:
    """The functions whose code a rule's page shows, the spelling first."""
    if isinstance(rule, Recogniser):
        return [e.function for e in rule.examples if inspect.isfunction(e.function)]
    return [f for f in (rule.pattern, rule.replacement, rule.when) if f is not None]


@pytest.mark.parametrize("op", REGISTRY.ops, ids=lambda op: op.name)
def test_every_op(op: Op, pages: dict[str, Page]) -> None:
    page = pages[f"ops/{op.name}.html"]
    written = formula.in_text(text.docstring(op.reference).paragraphs[0])
    assert written
    drawn = formula.mathml(written)
    assert drawn
    for name in (f"ops/{op.name}.html", "ops/index.html"):
        assert drawn in pages[name].path.read_text(encoding="utf-8")
    assert page.has(text.body(op.reference))
    assert page.has(text.body(op.cost))
    assert all(page.has(name) for name in (*op.inputs, *op.implementations, *op.shardings))
    for implementation in op.implementations.values():
        assert page.has(text.body(implementation.when))
        assert implementation.auto or page.has(f'{{"{op.name}": "{implementation.name}"}}')


def test_every_option(pages: dict[str, Page]) -> None:
    names = {f.name for f in dataclasses.fields(Options)}
    assert names <= pages["options.html"].ids
    assert all(pages["options.html"].has(name) for name in names)


@pytest.mark.parametrize("command", REGISTRY.commands, ids=lambda c: c.name)
def test_every_command(command: Command, pages: dict[str, Page], capsys: pytest.CaptureFixture[str]) -> None:
    page = pages["command-line.html"]
    assert command.name in page.ids
    assert page.has(command.example)
    with pytest.raises(SystemExit):
        cli.main([command.name, "--help"])
    flags = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)) - {"--help"}
    assert all(page.has(flag) for flag in flags)


# --- it is no list -----------------------------------------------------------------------------------

FAKE = '''
"""Twice the root."""
import torch
from hfgraph.kernels.rms_norm import rms_norm

def reference(x, scale=2.0):
    """``scale * sqrt(x)`` of each value (Nobody, 1999, arXiv:1234.5678).

    Args:
        x: of any shape.
        scale: see `rms_norm`.

    Returns:
        The shape of x.
    """
    return scale * torch.sqrt(x)

def cost(x, scale=2.0):
    return None

def pattern(x):
    return torch.sqrt(x) + torch.sqrt(x)

def replacement(x):
    return twice(x)

def growing(x, y):
    return twice(x) + y

def larger(x):
    return torch.nn.functional.rms_norm(twice(x), (8,))
'''


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module with an op and functions for rules, that is nowhere in hfgraph."""
    (tmp_path / "fake_room.py").write_text(FAKE.lstrip())
    spec = importlib.util.spec_from_file_location("fake_room", tmp_path / "fake_room.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fake_room", module)
    spec.loader.exec_module(module)
    inputs = Inputs(x="... D", scale=Scalar(2.0))
    target: Any = None
    module.twice = Op("twice", module.reference, module.cost, inputs, {}, target, "")
    return module


@pytest.fixture
def grown(fake: ModuleType) -> Registry:
    """The registry with one op, and three rules of a stage that hfgraph does not have."""
    inputs = Inputs(x="... D")

    def rule(name: str, pattern: Any, replacement: Any) -> Rule:
        return Rule(pattern, replacement, inputs, name=name, stage="invent")

    added = (
        rule("finds_it", fake.pattern, fake.replacement),
        rule("grows_it", fake.growing, fake.replacement),
        rule("takes_it", fake.larger, fake.pattern),
    )
    return replace(REGISTRY, ops=(*REGISTRY.ops, fake.twice), rules=(*REGISTRY.rules, *added))


def test_a_new_rule_and_a_new_op_appear(fake: ModuleType, grown: Registry) -> None:
    made_now, before = _generate.pages(grown), _generate.pages(REGISTRY)
    assert made_now.keys() - before.keys() == {"ops/twice.md", "source/fake_room.md", *(f"rules/{n}.md" for n in ("finds_it", "grows_it", "takes_it"))}
    assert "<code>finds_<wbr>it</code>" in made_now["rules/index.md"]
    assert "## Invent" in made_now["rules/index.md"]
    assert "return torch.sqrt(x) + torch.sqrt(x)" in made_now["rules/finds_it.md"]
    assert "Wherever the pattern is found" in made_now["rules/finds_it.md"]
    page = made_now["ops/twice.md"]
    assert "<mi>scale</mi><mo>·</mo><msqrt><mi>x</mi></msqrt>" in page
    assert "[arXiv:1234.5678](https://arxiv.org/abs/1234.5678)" in page
    found, grows, takes = (page.index(f"#### [`{n}`]") for n in ("finds_it", "grows_it", "takes_it"))
    assert page.index("### Found") < found < page.index("### Grown") < grows < page.index("### Taken further") < takes
    assert "| `x` | Of any shape. | a tensor `(..., D)`, of any rank |" in page
    assert "| a number; default `2.0` |" in page
    assert "| `reference` |" in page
    assert "None are described." in page
    assert "sqrt" in made_now["ops/index.md"]


def test_a_new_page_has_its_place(grown: Registry) -> None:
    nav = [{"Inside": ["design.md", {"Ops": "ops/index.md"}, {"Rules": "rules/index.md"}]}]
    inside: Any = _generate.with_registry(nav, grown)[0]["Inside"]
    assert inside[0] == "design.md"
    assert inside[1]["Ops"][0] == "ops/index.md"
    assert {"twice": "ops/twice.md"} in inside[1]["Ops"]
    assert inside[2]["Rules"][-1]["Invent"] == [{n: f"rules/{n}.md"} for n in ("finds_it", "grows_it", "takes_it")]


def test_an_op_of_which_nothing_is_known(fake: ModuleType) -> None:
    assert "No rule leads to this op yet." in ops.op_page(fake.twice, replace(REGISTRY, ops=(fake.twice,)))


def test_an_attribute_is_not_the_op_of_that_name(fake: ModuleType, grown: Registry) -> None:
    assert fake.rms_norm in REGISTRY.ops
    assert [op.name for op in taken(grown.rules[-1])] == ["twice"]


def test_a_new_option_and_a_new_command_appear() -> None:
    @dataclass
    class Chosen:
        """What a user can set.

        Attributes:
            colour: of everything, or ``"none"``.
        """

        colour: str = "red"

    page = usage.options(Chosen)
    assert '## `colour` { #colour }\n\nOf everything, or `"none"`.\n\nTakes `str`. Default: `red`.' in page

    def arguments(parser: Any) -> None:
        parser.add_argument("where", help="a place, <here> or --there")
        parser.add_argument("--fast", "--quick", type=int, default=3, help="how fast (default: %(default)s)")
        parser.add_argument("--way", choices=("a", "b"), nargs=2, metavar=("X", "Y"))

    def run(given: Any) -> int:
        return 0

    page = usage.command_line([Command("go", "go there", "Go.\n\nFar.\n\nexit status: 0 there,\n1 not there", "hfgraph go x", arguments, run)])
    assert "## `hfgraph go` { #go }\n\nGo.\n\nFar.\n\n" in page
    assert "| `WHERE` | a place, &lt;here&gt; or `--there` |" in page
    assert "| `--quick FAST` | how fast (default: 3) |" in page
    assert "| `--way X Y` |" in page
    assert "Exit status: `0` there, `1` not there." in page


def test_an_option_without_words_is_refused() -> None:
    @dataclass
    class Chosen:
        colour: str = "red"

    with pytest.raises(KeyError, match="colour"):
        usage.options(Chosen)


# --- formulas ----------------------------------------------------------------------------------------


def drawn(written: str) -> str:
    """The formula with its structure as brackets: {} for a fraction, a root or a power."""
    found = formula.mathml(written) or ""
    found = re.sub(r"<m(frac|sqrt|sup|sub)>", r"\1{", found)
    return html.unescape(re.sub(r"</m(frac|sqrt|sup|sub)>", "}", found)).replace("\u2061", "").replace("\u2212", "-")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("x / sqrt(mean(x^2) + eps)", "frac{xsqrt{mean(sup{x2})+ε}}"),
        ("(a + b) * c", "(a+b)·c"),
        ("a + b * c", "a+b·c"),
        ("a - (b - c)", "a-(b-c)"),
        ("a - b - c", "a-b-c"),
        ("(a / b)^2", "sup{(frac{ab})2}"),
        ("-x * y", "(-x)·y"),
        ("-(x + y)", "-(x+y)"),
        ("abs(x)", "|x|"),
        ("q @ k", "q@k"),
        ("f(x, ...)", "f(x,…)"),
        ("f(x, dim=-1)", "f(x,dim=-1)"),
        ("x[i + 1]", "sub{xi+1}"),
        ("x.T", "x.T"),
        ("(x + 1).T", "(x+1).T"),
        ("a, b", "(a,b)"),
    ],
)
def test_formulas(written: str, expected: str) -> None:
    assert re.sub(r"<[^>]*>", "", drawn(written)) == expected


@pytest.mark.parametrize("written", ["if x:", "x if y else z", "a // b", "lambda x: x", ""])
def test_what_cannot_be_drawn(written: str) -> None:
    assert formula.mathml(written) is None


def test_the_formula_of_a_sentence() -> None:
    assert formula.in_text("`x` times two is `2 * x`, not `x^2`.") == "2 * x"
    assert formula.in_text("Nothing of `that.kind` here.") is None


# --- small parts -------------------------------------------------------------------------------------


def test_docstrings_in_parts() -> None:
    def function() -> None:
        """First ``line``,
        and more.

        Second.

        Args:
            a, b: words: one
                and two.
            c: three.

        Returns:
            Much.
        """

    found = text.docstring(function)
    assert found.paragraphs == ("First `line`, and more.", "Second.")
    assert found.args == {"a": "words: one and two.", "b": "words: one and two.", "c": "three."}
    assert found.returns == "Much."
    assert text.body(function).startswith("def function() -> None:")
    assert text.docstring(lambda: None) == text.Docstring()


def test_code_fits_a_page() -> None:
    for rule in REGISTRY.rules:
        assert max(len(line) for function in shown_of(rule) for line in text.body(function).splitlines()) <= text.WIDTH


def test_cells_hold_no_bars() -> None:
    assert text.table(("a", "b"), [("x|y", "two\nlines")]).splitlines()[2] == "| x&#124;y | two lines |"


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        (Dims.parse("... D"), "a tensor `(..., D)`, of any rank"),
        (Dims.parse("D?"), "a tensor `(D,)`; may be absent"),
        (Scalar(1e-6), "a number, such as 1e-06"),
        (Switch(), "0 or 1"),
        (Dtype(optional=True), "a dtype; may be absent"),
    ],
)
def test_arguments_in_words(argument: Any, words: str) -> None:
    from _generate.rules import in_words

    assert in_words(argument) == words


def test_the_page_of_coverage() -> None:
    """Shares, a row for each architecture, every miss with its reason; what Dynamo does alone is not put down to hfgraph."""
    miss = Miss("attention", "layers.0.attn", 1, "a | b")
    one = Record("one", "OneModel", "causal", expected={"norm": 4, "attention": 2}, missed=[miss], graphs=1, error_of_dynamo=2.05, versions={"torch": "2.13"})
    one.surplus = {"norm": {"layers.0.gate": 1}}
    two = Record("two", "TwoModel", "mlm", expected={"norm": 7}, graphs=3, breaks=["a call of print", "Observed exception"])
    text = coverage.coverage_page(Coverage({"one": one, "two": two}))
    for row in (
        "| Causal language models | 1 | 1 | 4 of 4 |  | 1 of 2 |  |  |  |",
        "| Encoders | 1 | 0 |  |  |  |  |  |  |",
        "| All | 2 | 1 | 4 of 4 |  | 1 of 2 |  |  |  |",
        "| one | norm | layers.0.gate | 1 |",
        "| `one` | 1 | 4 |  | 1 of 2 |  |  |  |",
        "| `two` | 3 | 7 |  |  |  |  |  |",
        "| one | attention | layers.0.attn | 1 | a &#124; b |",
        "| two | 3 | a call of print |",
        "| two | 3 | tracing meets an exception that nothing in the traced code handles (Dynamo: Observed exception) |",
        "| one | 2 |",
    ):
        assert row in text.splitlines(), row
    assert "Seen 1 of them with torch 2.13; 1 of them with " in text
    assert "Seen with torch 2.13." in coverage.coverage_page(Coverage({"one": one}))
    del one.missed[:]
    assert "2 of 2" in coverage.coverage_page(Coverage({"one": one}))


def test_files_of_the_repository() -> None:
    assert files.section("README.md", "Use").startswith("```python")
    with pytest.raises(ValueError, match="no section 'Nosuch'"):
        files.section("README.md", "Nosuch")


# --- what the pages say to type ----------------------------------------------------------------------


def commands(markdown: str) -> Iterator[list[str]]:
    """The arguments of each `hfgraph ...` in a block of code."""
    for line in re.findall(r"^(?:\$ )?hfgraph (.*)$", markdown, flags=re.MULTILINE):
        yield shlex.split(line.partition("|")[0], comments=True)


@pytest.mark.parametrize("name", ["README.md", "docs/index.md"])
def test_commands_to_type_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = [c for block in blocks for c in commands(block)]
    assert found
    for arguments in found:
        try:
            cli.parser().parse_args(arguments)
        except SystemExit as ended:
            assert ended.code == 0, f"hfgraph {shlex.join(arguments)}: {capsys.readouterr().err}"
