"""`hfgraph zoo`: what it prints and keeps, that it goes on where it was, and that one bad model does not end it."""

from __future__ import annotations

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hfgraph import cli, versions, zoo
from hfgraph.errors import NotACoverageTable, UnknownArchitecture
from hfgraph.tables import render
from hfgraph.zoo import survey as module
from hfgraph.zoo.record import Miss, Record, match
from hfgraph.zoo.show import cell, families, missed, parts, surplus, wrong
from hfgraph.zoo.survey import survey
from hfgraph.zoo.table import Coverage, Share


def made_up(name: str, **given: Any) -> Record:
    return Record(name, "A", given.pop("family", "causal"), module.source_digest(), module.installed(), **given)


def quick(name: str) -> Record:
    """In place of the true examination; runs in another process, and does not survive gpt2."""
    if name == "gpt2":
        os._exit(3)
    return made_up(name, expected={"norm": 5}, found={"norm": 5}, graphs=1, error=3e-4 if name == "opt" else 0.0)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "examine", quick)


@pytest.fixture
def here(fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: starting others takes seconds."""
    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda jobs, *_: ThreadPoolExecutor(jobs))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A true run, in processes of its own: a table for people, JSON for scripts, and nothing examined twice."""
    file = tmp_path / "coverage.json"
    assert cli.main(["zoo", "llama", "gpt2", "--jobs", "2", "--out", str(file)]) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if "llama" in line)
    assert [c.strip() for c in row.strip("│").split("│")] == ["llama", "causal", "1", "5", "4", "2", "2", "", "4", "0e+00"]
    assert "Not found" not in text and "WRONG" not in text
    assert cli.main(["zoo", "llama", "--json", "--out", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == {"llama": json.loads(file.read_text())["models"]["llama"]}


def test_what_is_wrong_ends_with_status_1(here: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["zoo", "opt", "bart", "--jobs", "1"]) == 1
    assert "WRONG: opt: logits differ from eager's by 3.00e-04, more than 1e-05" in capsys.readouterr().out


def test_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["zoo", "--list", "--family", "mlm"]) == 0
    assert capsys.readouterr().out.split() == zoo.names("mlm")
    assert cli.main(["zoo", "lama"]) == 2
    assert "the zoo has no architecture 'lama'. Did you mean 'llama'?" in capsys.readouterr().err
    assert cli.main(["zoo", "llama", "--family", "mlm"]) == 2
    assert "options NAME and --family contradict each other" in capsys.readouterr().err
    with pytest.raises(UnknownArchitecture):
        zoo.build("blip-2")  # in the table, and not to be built


def test_a_process_that_dies_is_a_failure_of_its_model_alone(fast: None) -> None:
    found = survey(["gpt2", "bart"], jobs=2).records
    assert {n: r.failed for n, r in found.items()} == {"gpt2": "its process died", "bart": ""}


def test_it_goes_on_where_it_was(here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is kept, unless hfgraph or its libraries changed since; other records stay in the file."""
    file, done = tmp_path / "c.json", []
    survey(["opt", "bart"], jobs=1, file=file)

    def again(*names: str) -> list[str]:
        done.clear()
        survey(list(names), jobs=1, file=file, say=lambda name, *_: done.append(name))
        return done[1:]

    assert again("opt", "llama") == ["llama"]
    assert set(json.loads(file.read_text())["models"]) == {"opt", "bart", "llama"}
    changed = json.loads(file.read_text())
    changed["models"]["opt"]["sources"] = "of yesterday"
    file.write_text(json.dumps(changed))
    assert again("opt", "llama") == ["opt"]


def test_another_version_is_examined_anew_and_changes_no_other_record(here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each record says with what it was made, and so which are of yesterday."""
    file = tmp_path / "c.json"
    survey(["opt", "bart"], jobs=1, file=file)
    before = Coverage.load(file).records["bart"]
    monkeypatch.setattr(versions, "installed", lambda package: "0.1")
    survey(["opt"], jobs=1, file=file)
    table = Coverage.load(file)
    assert table.records["opt"].versions == {"torch": "0.1", "transformers": "0.1"} and table.records["bart"] == before
    assert table.stale(["opt", "bart"], module.source_digest(), module.installed()) == ["bart"]
    assert sorted(table.versions.values()) == [1, 1] and "torch 0.1, transformers 0.1" in table.versions


def test_a_file_that_names_the_versions_once_is_read(tmp_path: Path) -> None:
    record = made_up("opt").to_dict()
    del record["versions"], record["surplus"]
    (tmp_path / "old.json").write_text(json.dumps({"versions": {"torch": "2"}, "models": {"opt": record}}))
    assert Coverage.load(tmp_path / "old.json").records["opt"].versions == {"torch": "2"}


@pytest.mark.parametrize("text", ["", "[]", '{"models": []}', '{"versions": {}}', '{"models": {"a": {}}}', '{"versions": {}, "models": {"a": {"nme": 1}}}'])
def test_another_file_is_refused_before_any_work(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "notes.json"
    file.write_text(text)
    with pytest.raises(NotACoverageTable):
        Coverage.load(file)
    assert cli.main(["zoo", "llama", "--out", str(file)]) == 2
    assert "is no table of hfgraph zoo" in capsys.readouterr().err and file.read_text() == text


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    miss = Miss("attention", "a.b", 1, "why")
    table = Coverage({"x": made_up("x", expected={"attention": 2}, missed=[miss], surplus={"norm": {"a": 1}}, breaks=["so"])})
    table.save(tmp_path / "t.json")
    assert Coverage.load(tmp_path / "t.json") == table


def test_shares() -> None:
    """A model with more sites than were expected does not make up for another, nor do failed ones and those of several graphs count."""
    one = made_up("one", expected={"norm": 4}, found={"norm": 9}, graphs=1)
    two = made_up("two", expected={"norm": 6}, found={"norm": 5}, missed=[Miss("norm", "a", 2, "r"), Miss("glu", "a", 1, "r")], graphs=1, family="mlm")
    table = Coverage({r.name: r for r in (one, two, made_up("broken", expected={"norm": 7}, graphs=3), made_up("failed", failed="no"))})
    nothing = made_up("nothing", error=float("nan"))
    assert Coverage({"nothing": nothing}).wrong == [nothing]
    assert table.share("norm") == Share(8, 10) and str(table.share("norm", "causal")) == "4 of 4" and str(table.share("rope")) == ""
    assert (cell(one, "norm"), cell(two, "norm"), cell(two, "rope")) == ("4", "4 of 6", "")
    assert [r.name for r in table.wrong] == ["failed"] and wrong(table) == ["FAILED: failed: no"]


def test_misses_with_one_reason_are_one_row() -> None:
    record = made_up("x", missed=[Miss("norm", "a.0", 1, "r"), Miss("norm", "a.1", 2, "r"), Miss("norm", "a.2", 1, "s")])
    assert list(missed(Coverage({"x": record}))) == [("x", "norm", "a.0 and 1 more", "3", "r"), ("x", "norm", "a.2", "1", "s")]


def test_what_is_found_where_none_is_expected_is_listed() -> None:
    record = made_up("x", surplus={"norm": {"a.gate": 2}})
    assert list(surplus(Coverage({"x": record}))) == [("x", "norm", "a.gate", "2")]
    assert "Found where none is expected" in render(parts(Coverage({"x": record})))
    assert "Found where none is expected" not in render(parts(Coverage({"x": made_up("x")})))


def test_models_that_trace_in_one_graph_have_a_column_of_their_own() -> None:
    """Shares are theirs, and not those of all."""
    table = Coverage({r.name: r for r in (made_up("one", graphs=1), made_up("two", graphs=3), made_up("failed", failed="no"))})
    assert table.families == {"causal": 3} and table.in_one_graph == {"causal": 1}
    row = next(line for line in render([families(table)]).splitlines() if "causal" in line)
    assert [c.strip() for c in row.strip("│").split("│")][:3] == ["causal", "3", "1"]


@pytest.mark.parametrize(
    ("expected", "found", "left", "beyond"),
    [
        ({"l.norm": 1}, {("l", "l.norm"): 1}, {}, {}),  # its caller multiplies by the weight
        ({"l.norm": 1}, {("l.gate", "l.norm"): 1}, {}, {}),  # so does what stands beside it
        ({"l.in_norm": 1}, {("l.gate_norm",): 1}, {"l.in_norm": 1}, {"l.gate_norm": 1}),  # beside it, and nothing of it
        ({"l.norm": 1}, {("l",): 1}, {"l.norm": 1}, {"l": 1}),  # around it, and nothing of it
        ({"l.norm": 1}, {("",): 1}, {"l.norm": 1}, {"": 1}),  # outside of any module
        ({"l.attn": 1}, {("l.attn.self",): 1}, {}, {}),  # what a module calls is its own
        ({"l.attn": 1}, {("l", "l.mamba.in", "l.attn.q"): 1}, {}, {}),  # more linears read the value than those that were expected
        ({"l.a": 1, "l.b": 1}, {("l.a", "l.b"): 2}, {}, {}),  # either may be meant
        ({"x.l.norm": 1}, {("norm",): 1}, {"x.l.norm": 1}, {"norm": 1}),  # in one graph paths are whole
        ({"": 1}, {("",): 1}, {}, {}),  # a function outside of any module
        ({"": 1}, {("a.b",): 1}, {"": 1}, {"a.b": 1}),
    ],
)
def test_sites_are_matched_by_module(expected: dict[str, int], found: dict[tuple[str, ...], int], left: dict[str, int], beyond: dict[str, int]) -> None:
    assert match(Counter(expected), Counter(found), whole=True) == (Counter(left), Counter(beyond))


@pytest.mark.parametrize(
    ("expected", "found", "left", "beyond"),
    [
        ({"x.l.norm": 2}, {("norm",): 1, ("l.norm",): 1}, {}, {}),  # below the function that goes on
        ({"x.l.attn": 1}, {("attn.q", "attn.k"): 1}, {}, {}),  # the same, within
        ({"x.l.norm": 1, "x.k.norm": 1}, {("l", "l.norm"): 1, ("k.gate", "k.norm"): 1}, {}, {}),
        ({"y.attn.k": 1, "x.attn": 1}, {("attn", "attn.k"): 1}, {"y.attn.k": 1}, {}),  # its own module says more than those of its nodes
        ({"x.l.norm": 1}, {("",): 1}, {}, {}),  # Dynamo does not know where
        ({"x.l.norm": 1}, {("xnorm",): 1}, {"x.l.norm": 1}, {"xnorm": 1}),
        ({"x.l.in_norm": 1}, {("l.gate_norm",): 1}, {"x.l.in_norm": 1}, {"l.gate_norm": 1}),
    ],
)
def test_sites_of_parts_are_matched_by_the_tail_of_their_path(
    expected: dict[str, int], found: dict[tuple[str, ...], int], left: dict[str, int], beyond: dict[str, int]
) -> None:
    assert match(Counter(expected), Counter(found), whole=False) == (Counter(left), Counter(beyond))
