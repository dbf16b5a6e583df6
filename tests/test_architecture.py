"""How the source is laid out: who may import whom, sizes, names, docstrings. Each check is shown to fail on made-up text."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hfgraph.rewrites import STAGES

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
FILES = sorted(p.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*.py"))
TESTS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "tests").rglob("*.py"))
every_file = pytest.mark.parametrize("name", FILES)
every_test = pytest.mark.parametrize("name", TESTS)

Check = Callable[[str, str], list[str]]  # a file's name below src (or the repo) and its text -> what is wrong


def source(name: str) -> str:
    return (SOURCE / name).read_text()


# --- who may import whom ------------------------------------------------------------------------------

# From the bottom up: each imports those below it, and graph, kernels and rewrites also themselves. What is not listed stands on top.
LAYERS = (
    ("errors",),
    ("causes", "files"),
    ("graph",),
    ("kernels",),
    ("rewrites",),
    ("breaks", "bypass", "entries", "lower", "masks", "merge", "models", "options", "page", "stacking", "tables", "versions"),
    ("pipeline",),
    ("report", "verdict"),
    ("backend",),
    ("doctoring", "explaining"),
    ("bench", "verifying", "zoo"),
)
RANK = {part: i for i, layer in enumerate(LAYERS) for part in layer}
TOP = len(LAYERS)
# Who may load a heavy package at all, by part of hfgraph.
HEAVY = {
    "transformers": {"models", "bench", "zoo"}, "triton": {"kernels"}, "rich": {"tables", "commands", "bench", "zoo"},
    "matplotlib": {"bench"}, "psutil": {"bench"},
}  # fmt: skip


def part(module: str) -> str:
    """`hfgraph.graph.match` -> `graph`; the package itself is `hfgraph`."""
    return (*module.split("."), "hfgraph")[1]


def module_of(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(name: str, text: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports at run time, also inside functions and by `import_module`."""
    package = module_of(name) if name.endswith("__init__.py") else module_of(name).rpartition(".")[0]
    for node in run_time(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            base = ".".join(p for p in (above, node.module or "") if p)
            yield from ((node.lineno, f"{base}.{a.name}") for a in node.names)
        elif isinstance(node, ast.Call) and node.args and called(node) in ("import_module", "__import__"):
            given = node.args[0]
            if isinstance(given, ast.Constant) and isinstance(given.value, str):
                yield node.lineno, given.value


def run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only type checkers see."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(node, ast.If) and child in node.body and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield from run_time(child)


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def wrong_imports(name: str, text: str) -> list[str]:
    """Imports that go up, or sideways."""
    mine, found = part(module_of(name)), []
    for line, module in imports(name, text):
        top = module.partition(".")[0]
        if top in HEAVY and mine not in HEAVY[top]:
            found.append(f"{name}:{line} imports {top}; only {', '.join(sorted(HEAVY[top]))} may")
        if top != "hfgraph" or mine not in RANK:
            continue
        other = part(module)
        if other != mine and RANK.get(other, TOP) >= RANK[mine]:
            found.append(f"{name}:{line} imports {module}: {other} does not stand below {mine}")
        # A kernel is a function of tensors, a rule a value: neither has failures of its own to report.
        elif mine in ("kernels", "rewrites") and other == "errors":
            found.append(f"{name}:{line} imports {module}: {mine} needs no errors")
    return found


@every_file
def test_imports_go_down(name: str) -> None:
    assert not (found := wrong_imports(name, source(name))), "\n".join(found)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hfgraph/graph/match.py", "from hfgraph.kernels import all_ops"),
        ("hfgraph/graph/match.py", "from hfgraph import rewrites"),
        ("hfgraph/graph/match.py", "import hfgraph.backend as b"),
        ("hfgraph/graph/match.py", "def f():\n    from hfgraph.options import Options"),
        ("hfgraph/graph/match.py", "class A:\n    def f(self):\n        if True:\n            import hfgraph.pipeline"),
        ("hfgraph/graph/match.py", "from ..kernels import rms_norm"),
        ("hfgraph/graph/match.py", "import importlib\nimportlib.import_module('hfgraph.kernels')"),
        ("hfgraph/graph/match.py", "from hfgraph import something_new"),
        ("hfgraph/graph/match.py", "import hfgraph"),
        ("hfgraph/graph/match.py", "if TYPE_CHECKING:\n    pass\nelse:\n    from hfgraph.report import Report"),
        ("hfgraph/graph/match.py", "import triton"),
        ("hfgraph/graph/__init__.py", "from ..backend import hfgraph"),
        ("hfgraph/kernels/x/__init__.py", "from hfgraph.rewrites import rules"),
        ("hfgraph/kernels/x/__init__.py", "from hfgraph.errors import HfgraphError"),
        ("hfgraph/kernels/x/__init__.py", "from hfgraph.lower import lower"),
        ("hfgraph/rewrites/fuse/x.py", "from hfgraph.pipeline import run"),
        ("hfgraph/rewrites/fuse/x.py", "import transformers"),
        ("hfgraph/errors.py", "from hfgraph.graph.rule import Rule"),
        ("hfgraph/pipeline.py", "from hfgraph.backend import rewrite"),
        ("hfgraph/report.py", "def f():\n    from hfgraph import backend"),
        ("hfgraph/backend.py", "import hfgraph.verifying"),
    ],
)
def test_an_import_that_goes_up_is_caught(name: str, text: str) -> None:
    assert len(wrong_imports(name, text)) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hfgraph/graph/match.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hfgraph.backend import hfgraph"),
        ("hfgraph/graph/match.py", "from . import alias\nfrom .values import val\nfrom hfgraph import errors\nimport torch"),
        ("hfgraph/kernels/x/triton.py", "import triton\nfrom ..launch import Launch\nfrom hfgraph.graph.op import op"),
        ("hfgraph/rewrites/fuse/x.py", "from hfgraph.kernels.rms_norm import rms_norm\nfrom hfgraph.graph.rule import Rule"),
        ("hfgraph/cli.py", "import hfgraph\nfrom hfgraph.verifying import verify"),
    ],
)
def test_an_import_that_goes_down_is_not(name: str, text: str) -> None:
    assert wrong_imports(name, text) == []


def test_the_layers_exist() -> None:
    assert {p for layer in LAYERS for p in layer} <= {part(module_of(n)) for n in FILES}


# --- light --------------------------------------------------------------------------------------------


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in a fresh interpreter after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stdout.split())


def test_the_package_is_light_to_import() -> None:
    assert not loaded_by("import hfgraph") & {"torch", "transformers", "triton", "sympy", "rich", "numpy"}


def test_a_heavy_import_is_caught() -> None:
    assert "sympy" in loaded_by("import hfgraph, sympy")


# --- sizes --------------------------------------------------------------------------------------------

MOST_LINES, MOST_IN_A_FUNCTION, MOST_IN_A_KERNEL = 300, 40, 80
CATALOGUES = {"hfgraph/errors.py"}  # many small classes that nobody reads from end to end


def too_long(name: str, text: str) -> list[str]:
    """Files and functions that do not fit on a page; a function's docstring counts, its decorators do not."""
    lines = len(text.splitlines())
    found = [f"{name} has {lines} lines, {MOST_LINES} are allowed"] if lines > MOST_LINES and name not in CATALOGUES else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            most = MOST_IN_A_KERNEL if any("triton.jit" in ast.unparse(d) for d in node.decorator_list) else MOST_IN_A_FUNCTION
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > most:
                found.append(f"{name}:{node.lineno} {node.name} has {lines} lines, {most} are allowed")
    return found


@every_file
def test_files_and_functions_are_short(name: str) -> None:
    assert not (found := too_long(name, source(name))), "\n".join(found)


def _function(lines: int, head: str = "") -> str:
    return f"{head}def f():\n" + "    x = 1\n" * (lines - 1)


@pytest.mark.parametrize(
    "text", ["\n" * 301, _function(41), "class A:\n    async " + _function(41).replace("\n    ", "\n        "), _function(81, "@triton.jit\n")]
)
def test_what_is_too_long_is_caught(text: str) -> None:
    assert len(too_long("made_up.py", text)) == 1


@pytest.mark.parametrize("text", ["\n" * 300, _function(40), _function(80, "@triton.jit\n"), _function(80, "@triton.jit(do_not_specialize=['n'])\n")])
def test_what_just_fits_is_not(text: str) -> None:
    assert too_long("made_up.py", text) == []


# --- no model is known --------------------------------------------------------------------------------

# Distinctive anywhere in a word, and those that are words only when they stand alone (`phi`, not `graphic`).
_FAMILIES = (
    "llama|qwen|gemma|mistral|mixtral|deepseek|roberta|deberta|distil|granite|falcon|starcoder|olmo|nemotron|whisper|wav2vec|mamba|minicpm|internlm|ministral"
)
_SHORT = "phi|t5|mt5|bert|gpt|gptj|cohere|bart|opt|bloom|glm|chatglm|smollm|vit|clip_vision|siglip|exaone|xlnet|zamba|jamba|dbrx|yi|ernie|hunyuan|seed_oss"
_MODEL = re.compile(rf"(?:{_FAMILIES})|(?<![A-Za-z])(?:{_SHORT})(?:\d+(?:\.\d+)?)?(?![a-z])", re.IGNORECASE)
_CAMEL = re.compile(r"(?<![A-Z])(?:Phi|T5|Bert|GPT|Cohere|Bart|OPT|Bloom|GLM|ViT)\d*(?=[A-Z][a-z]|For|Model|RMS)")


def model_names(name: str, text: str) -> list[str]:
    """Names of models or families, in code or in words."""
    found = []
    for i, line in enumerate((name, *text.splitlines())):
        hit = _MODEL.search(line) or _CAMEL.search(line)
        if hit:
            found.append(f"{name}:{i} names {hit[0]!r}: a rule knows a spelling, not who writes it")
    return found


# Recurrences have no names but those of the papers.
NAMES = "hfgraph/rewrites/recurrences/kinds/"


@pytest.mark.parametrize("name", [n for n in FILES if part(module_of(n)) in ("graph", "rewrites", "kernels") and not n.startswith(NAMES)])
def test_no_model_is_named(name: str) -> None:
    assert not (found := model_names(name, source(name))), "\n".join(found)


@pytest.mark.parametrize(
    "text",
    ["# as Llama does", "def qwen3_norm(x): ...", "class GemmaRMSNorm: ...", "# phi-3 casts", "'''T5 has none'''", "t5_norm = 1",
     "x = 'gpt2'", "class BertModel: ...",
     "Phi3RMSNorm", "class GPTNeoX: ...", "# DeepSeek-V3", "CohereLayerNorm", "# the granite multiplier", "ROBERTA"],
)  # fmt: skip
def test_a_model_is_caught_in_text(text: str) -> None:
    assert model_names("made_up.py", text) != []


def test_a_model_is_caught_in_a_files_name() -> None:
    assert model_names("hfgraph/rewrites/recognise/rms_norm_llama.py", "") != []


@pytest.mark.parametrize(
    "text", ["# graphic, philosophical, coherent", "from hfgraph.options import Options", "optional = True", "import at52", "# Hilbert's adopted vitals"]
)
def test_other_words_are_not(text: str) -> None:
    assert model_names("made_up.py", text) == []


# --- docstrings ---------------------------------------------------------------------------------------

_OF_A_RULE = {"pattern", "replacement", "when", "recognise"}
_NEEDED = {"Rule": ("pattern", "replacement"), "Recogniser": ("recognise",)}


def is_rule(name: str) -> bool:
    return re.fullmatch(rf"hfgraph/rewrites/({'|'.join(STAGES)})/(?!__init__)\w+\.py", name) is not None


def undocumented(name: str, text: str) -> list[str]:
    """Public modules, classes and functions without a docstring; a rule's functions are said by the rule's file."""
    tree = ast.parse(text)
    found = [] if ast.get_docstring(tree) else [f"{name} has no docstring"]
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_") or ast.get_docstring(node):
            continue
        if not (is_rule(name) and node.name in _OF_A_RULE):
            found.append(f"{name}:{node.lineno} {node.name} has no docstring")
    return found


def no_rule(name: str, text: str) -> list[str]:
    """What makes a file in a stage's folder a rule or a recogniser: RULE, assigned once, made of the file's own functions."""
    if not is_rule(name):
        return []
    tree = ast.parse(text)
    made = [n.value for n in tree.body if isinstance(n, ast.Assign) and [ast.unparse(t) for t in n.targets] == ["RULE"]]
    if len(made) != 1 or not isinstance(made[0], ast.Call) or called(made[0]) not in _NEEDED:
        return [f"{name} does not assign RULE = Rule(...) or Recogniser(...) once"]
    own = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    given = {ast.unparse(a) for a in made[0].args} | {ast.unparse(k.value) for k in made[0].keywords if k.arg != "inputs"}
    return [f"{name}: {n} is no part of RULE" for n in sorted(_OF_A_RULE & own - given)] + [
        f"{name} has no {n}" for n in _NEEDED[called(made[0])] if n not in own
    ]


@every_file
def test_what_is_public_says_what_it_is(name: str) -> None:
    assert not (found := undocumented(name, source(name))), "\n".join(found)


@every_file
def test_a_file_in_a_stage_is_a_rule(name: str) -> None:
    assert not (found := no_rule(name, source(name))), "\n".join(found)


def test_the_rules_are_seen() -> None:
    assert sum(is_rule(n) for n in FILES) >= 14


@pytest.mark.parametrize("text", ["x = 1", '"""Words."""\ndef f(): ...', '"""Words."""\nclass A: ...', '"""Words."""\nasync def f(): ...', '""" """'])
def test_what_says_nothing_is_caught(text: str) -> None:
    assert len(undocumented("hfgraph/made_up.py", text)) == 1


def test_what_is_private_may_say_nothing() -> None:
    assert undocumented("hfgraph/made_up.py", '"""Words."""\ndef _f(): ...\nclass _A: ...\ndef f():\n    "Words."\n    def inner(): ...') == []


_RULE = '"""Words."""\ndef pattern(x): ...\ndef replacement(x): ...\ndef when(x): ...\nRULE = Rule(pattern, replacement, inputs=Inputs(x="D"), when=when)\n'
_RECOGNISER = '"""Words."""\ndef recognise(node, view): ...\nRULE = Recogniser(ANCHORS, recognise, attention, EXAMPLES)\n'
_IN_A_STAGE = "hfgraph/rewrites/fuse/made_up.py"


def test_a_rule_as_it_should_be() -> None:
    for text in (_RULE, _RECOGNISER):
        assert no_rule(_IN_A_STAGE, text) == [] and undocumented(_IN_A_STAGE, text) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [("RULE =", "RULES ="), ("Rule(", "dict("), (", when=when", ""), ("def pattern", "def written"), ('RULE = ', 'RULE = Rule(1)\nRULE = ')],
)  # fmt: skip
def test_a_file_that_is_no_rule_is_caught(old: str, new: str) -> None:
    assert no_rule(_IN_A_STAGE, _RULE.replace(old, new)) != []


@pytest.mark.parametrize(("old", "new"), [("RULE =", "RULES ="), ("ANCHORS, recognise", "ANCHORS, lambda n, v: None"), ("def recognise", "def look")])
def test_a_file_that_is_no_recogniser_is_caught(old: str, new: str) -> None:
    assert no_rule(_IN_A_STAGE, _RECOGNISER.replace(old, new)) != []


# --- tests stay in the repository ---------------------------------------------------------------------

_SLASH = "/"
_PLACES = "|".join(("home", "root", "tmp", "usr", "etc", "var", "opt", "mnt", "data", "work", "proc", "Users"))
_ABSOLUTE = re.compile(rf"(?:^|[\s'\"=(])(?:{_SLASH}(?:{_PLACES})\b|~{_SLASH}|[A-Z]:\\\w)")


_OPENS = {"open", "Path", "PurePath", "load", "read_csv", "listdir", "glob", "iglob", "chdir", "insert", "append", "joinpath", "run", "Popen", "exists"}


def is_absolute(value: ast.AST) -> bool:
    return isinstance(value, ast.Constant) and isinstance(value.value, str) and re.match(rf"{_SLASH}\w", value.value) is not None


def reaches_outside(name: str, text: str) -> list[str]:
    """Absolute paths in strings, home folders, and parents above the repository; `name` counts from its root."""
    depth, found = len(Path(name).parts), []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _ABSOLUTE.search(node.value):
            found.append(f"{name}:{node.lineno} names a folder of the machine")
        elif isinstance(node, ast.Call) and called(node) in _OPENS and any(is_absolute(a) for a in node.args):
            found.append(f"{name}:{node.lineno} opens an absolute path")
        elif isinstance(node, ast.Call) and called(node) in ("expanduser", "home", "gettempdir"):
            found.append(f"{name}:{node.lineno} asks for a folder of the machine")
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "parents":
            index = node.slice.value if isinstance(node.slice, ast.Constant) else depth
            if not isinstance(index, int) or index >= depth:
                found.append(f"{name}:{node.lineno} climbs above the repository")
        elif isinstance(node, ast.Attribute) and ast.unparse(node).count(".parent") > depth:
            found.append(f"{name}:{node.lineno} climbs above the repository")
    return found


@every_test
def test_tests_read_nothing_outside(name: str) -> None:
    assert not (found := reaches_outside(name, (ROOT / name).read_text())), "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [f"open('{_SLASH}etc/hosts')", f"torch.load('{_SLASH}models{_SLASH}llm')", f"run('cd {_SLASH}tmp; ls')",
     f"Path('~{_SLASH}.cache')", "Path.home()", "os.path.expanduser(x)",
     "Path(__file__).parents[2]", "Path(__file__).parents[-1]".replace("-1", "9"), "Path(__file__).parent.parent.parent",
     "tempfile.gettempdir()", "x = 'C:\\\\models'"],
)  # fmt: skip
def test_reaching_outside_is_caught(text: str) -> None:
    assert reaches_outside("tests/made_up.py", text) != []


@pytest.mark.parametrize(
    "text", ["Path(__file__).parents[1] / 'src'", "x = 'a/b'", "x = 'a / b, / for one'", "Path(__file__).parent", "tmp_path / 'x'", "x = '/'"]
)
def test_staying_inside_is_not(text: str) -> None:
    assert reaches_outside("tests/made_up.py", text) == []
