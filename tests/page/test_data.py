"""What the page is made of: layers folded, places found, small for large models."""

from __future__ import annotations

import dataclasses
import html
import json
from pathlib import Path
from typing import Any

import pytest
from page_cases import explained, llama, rows

from hfgraph import page
from hfgraph.errors import CannotWrite
from hfgraph.page.data import page_data
from hfgraph.page.layers import tree
from hfgraph.report import Report

TO = "\u2013"


def names(report: Report) -> dict[str, int]:
    """Full name of each row -> how many modules it stands for."""
    return {row["full"]: len(row["paths"]) for row in rows(page_data(report)["graphs"][0]["tree"])}


def test_layers_that_are_alike_are_one_row(plain: Report) -> None:
    found = names(plain)
    assert found[f"model.layers.1{TO}7"] == 7 and found["model.layers.0"] == 1
    assert f"model.layers.1{TO}7.input_layernorm" in found and not any(".layers.2" in name for name in found)


def test_a_layer_that_differs_is_a_row_of_its_own(odd: Report) -> None:
    layers = {name: n for name, n in names(odd).items() if name.count(".") == 2 and ".layers." in name}
    # The sum before an odd norm stays where it is computed: in the layer before.
    assert layers == {"model.layers.0": 1, f"model.layers.1, 6{TO}7": 3, "model.layers.2, 4": 2, "model.layers.3, 5": 2}


def test_every_node_and_site_is_under_its_module(odd: Report) -> None:
    graph = odd.graphs[0]
    walked = list(tree(graph).walk())
    assert len({m.path for m in walked}) == len(walked)
    for module in walked:
        assert all(n.module == module.path for n in (*module.before, *module.after))
        assert all(s.module == module.path for s in module.sites)


def counted(tree_row: dict[str, Any], key: str) -> int:
    """A figure of a whole tree, folded modules included."""
    own = len(tree_row["sites"]) if key == "sites" else tree_row[key]
    return len(tree_row["paths"]) * (own + sum(counted(c, key) for c in tree_row["children"]))


@pytest.mark.parametrize("fixture", ["plain", "odd", "broken"])
def test_folding_loses_nothing(fixture: str, request: pytest.FixtureRequest) -> None:
    report: Report = request.getfixturevalue(fixture)
    for graph, shown in zip(report.graphs, page_data(report)["graphs"], strict=True):
        for side, snapshot in (("before", graph.before), ("after", graph.after)):
            assert counted(shown["tree"], side) == sum(n.kind == "call" for n in snapshot.nodes)
        assert counted(shown["tree"], "sites") == len(graph.sites)


def test_a_near_miss_names_a_node_that_the_page_has(odd: Report) -> None:
    graph = page_data(odd)["graphs"][0]
    name = page_data(odd)["fields"].index("name")
    known = {n[name] for n in graph["before"]} & {n[name] for n in graph["after"]}
    missed = [s for row in rows(graph["tree"]) for s in row["sites"] if s["status"] == "near miss"]
    assert len(missed) == 1  # two layers, folded
    assert missed[0]["node"] in known and set(missed[0]["nodes"]) <= known
    assert "x.pow(4)" in missed[0]["code"] and missed[0]["source"].startswith("page_cases.py:")


def test_what_a_node_reads_is_there_to_be_drawn(odd: Report) -> None:
    data = page_data(odd)
    name, inputs, module = (data["fields"].index(f) for f in ("name", "inputs", "module"))
    for graph in data["graphs"]:
        kept = {row["path"] for row in rows(graph["tree"])}
        for side in ("before", "after"):
            known = {n[name] for n in graph[side]}
            assert all(set(n[inputs]) <= known for n in graph[side] if n[module] in kept)


def test_three_times_the_layers_is_no_larger_page(plain: Report) -> None:
    assert len(page.render(explained(llama(24)))) < len(page.render(plain)) + 5_000


def test_the_page_needs_no_network_and_no_model_can_break_out_of_its_data(plain: Report) -> None:
    text = page.render(plain)
    for load in ("src=", 'href="http', "url(", "@import", "fetch(", "XMLHttpRequest", "sourceMappingURL"):
        assert load not in text, load
    data = text.split('id="data">')[1].split("</script>")[0]
    assert json.loads(data)["model"] == "LlamaForCausalLM"


def test_a_source_line_that_ends_a_script_stays_text(broken: Report) -> None:
    graph = broken.graphs[0]
    evil = dataclasses.replace(graph.sites[0], code="x = '</script><script>alert(1)'")
    changed = Report([dataclasses.replace(graph, sites=[evil])], model="<b>{{DATA}}</b>")
    text = page.render(changed)
    assert "alert(1)" in text and "<script>alert" not in text and "<b>" not in text
    assert json.loads(text.split('id="data">')[1].split("</script>")[0])["graphs"][0]["tree"]["sites"][0]["code"] == evil.code


def test_graph_breaks_have_their_cause_and_place(broken: Report) -> None:
    data = page_data(broken)
    assert len(data["graphs"]) == 2 and len(data["breaks"]) == 1
    assert (data["breaks"][0]["words"], data["breaks"][0]["advice"]) == ("the code asks for it", "Take the call out.")
    assert data["breaks"][0]["source"].startswith("conftest.py:") and "graph_break()" in data["breaks"][0]["code"]
    assert data["graphs"][0]["ended"]["source"] == data["breaks"][0]["source"]
    assert data["graphs"][1]["ended"] is None


def test_to_html_writes_the_page(plain: Report, tmp_path: Path) -> None:
    plain.to_html(tmp_path / "report.html")
    assert "LlamaForCausalLM" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("where", ["missing/report.html", "."])
def test_a_page_that_cannot_be_written_is_an_error(plain: Report, tmp_path: Path, where: str) -> None:
    with pytest.raises(CannotWrite, match="cannot write"):
        plain.to_html(tmp_path / where)


def test_a_notebook_shows_the_page(plain: Report) -> None:
    """As one attribute of a frame: nothing of the page may end it."""
    shown = plain._repr_html_()
    assert shown.startswith('<iframe srcdoc="') and shown.endswith("></iframe>")
    assert shown.count('"') == 8 and html.unescape(shown.split('"')[1]) == page.render(plain)
