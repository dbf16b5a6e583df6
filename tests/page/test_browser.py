"""Clicks through the page in a real browser, on a desktop and on a phone, light and dark."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from hfgraph.report import Report

CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
TO = "\u2013"

pytestmark = pytest.mark.skipif(CHROMIUM is None and not os.environ.get("HFGRAPH_NEEDS_BROWSER"), reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        yield chromium
        chromium.close()


class Opened:
    """A page on a report, and everything that went wrong on it."""

    def __init__(self, browser: Browser, report: Report, folder: Path, size: dict[str, int], scheme: str = "light") -> None:
        report.to_html(folder / "report.html")
        self.address = (folder / "report.html").as_uri()
        self.page: Page = browser.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda e: self.wrong.append(str(e)))
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type == "error" else None)
        self.page.on("request", lambda r: self.wrong.append(r.url) if not r.url.startswith("file:") else None)
        self.page.goto(self.address)

    def row(self, path: str) -> None:
        self.page.locator(f'[data-path="{path}"]').click()


@pytest.fixture
def opened(browser: Browser, odd: Report, tmp_path: Path) -> Iterator[Opened]:
    found = Opened(browser, odd, tmp_path, DESKTOP)
    yield found
    found.page.close()
    assert found.wrong == []


def test_a_newcomer_sees_which_norm_was_not_rewritten_and_why(opened: Opened) -> None:
    page = opened.page
    expect(page.locator("h1")).to_have_text("LlamaForCausalLM")
    expect(page.locator(".story")).to_contain_text("rms_norm \u00d715")
    expect(page.locator(".story")).to_contain_text("2 places nearly matched")
    detail = page.locator("#detail")
    expect(detail.locator(".path")).to_contain_text("model.layers.3, 5.input_layernorm")
    expect(detail).to_contain_text("the first difference is at pow(")
    expect(detail).to_contain_text("expected 2, found 4")
    expect(detail.locator(".code")).to_contain_text("x.pow(4)")
    assert page.locator(".drawing.after .node.differs").get_attribute("data-name") is not None
    expect(page.locator("#near")).to_contain_text("expected 2, found 4")


def test_layers_unfold_and_lead_to_their_places(opened: Opened) -> None:
    page = opened.page
    opened.row("model.layers.1")
    detail = page.locator("#detail")
    expect(detail.locator(".path")).to_contain_text(f"model.layers.1, 6{TO}7")
    expect(detail).to_contain_text("3 modules that compute alike")
    assert detail.locator(".site").count() == 7  # two norms, attention, rotation, gated MLP, two groups of linears
    detail.get_by_role("button", name="input_layernorm", exact=True).click()
    expect(detail.locator(".path")).to_contain_text("input_layernorm")
    assert page.evaluate("location.hash") == "#0:model.layers.1.input_layernorm"
    page.reload()
    expect(detail.locator(".path")).to_contain_text("input_layernorm")


def test_the_arrow_folds_and_unfolds(opened: Opened) -> None:
    page = opened.page
    attention = page.locator('[data-path="model.layers.1.self_attn"]')
    expect(attention).to_have_count(0)
    arrow = page.locator('[data-path="model.layers.1"] .fold')
    arrow.click()
    expect(attention).to_have_count(1)
    arrow.click()
    expect(attention).to_have_count(0)


def test_search_finds_a_folded_layer_code_and_operators(opened: Opened) -> None:
    page = opened.page
    page.keyboard.press("/")
    for text, path in (
        ("layers.7.input", "model.layers.1.input_layernorm"),
        ("x.pow(4)", "model.layers.3.input_layernorm"),
        ("scaled_dot", "model.layers.0.self_attn"),
    ):
        page.locator("#search").fill(text)
        expect(page.locator(f'[data-path="{path}"]')).to_have_count(1)
    page.locator("#search").fill("no such thing")
    expect(page.locator("#tree")).to_contain_text("Nothing here matches")
    page.keyboard.press("Escape")
    expect(page.locator('[data-path="model"]')).to_have_count(1)


def test_filters_count_and_narrow(opened: Opened) -> None:
    page = opened.page
    near = page.locator('[data-filter="near"]')
    expect(near).to_have_text("Nearly 2")
    expect(page.locator('[data-filter="done"]')).to_have_text("Rewritten 31")
    near.click()
    expect(page.locator('[data-path="model.layers.3.input_layernorm"]')).to_have_count(1)
    expect(page.locator('[data-path="model.norm"]')).to_have_count(0)
    page.locator('[data-filter="traced"]').click()
    expect(page.locator('[data-path="model.embed_tokens"]')).to_have_count(1)


def test_the_drawing_shows_counterparts_and_zooms(opened: Opened) -> None:
    page = opened.page
    opened.row("model.norm")
    expect(page.locator(".drawing.after .node.made")).to_have_count(1)
    assert page.locator(".drawing.before .node.taken").count() >= 6
    page.locator(".drawing.after .node.made").click()
    expect(page.locator("#picked")).to_contain_text("add_rms_norm(")
    expect(page.locator("#picked")).to_contain_text("made by rms_norm → rms_norm_weight → add_rms_norm")
    assert page.locator(".drawing.before .node.lit").count() >= 6
    content = page.locator(".drawing.after svg > g")
    before = content.get_attribute("transform")
    page.locator(".drawing.after").get_by_role("button", name="zoom in").click()
    zoomed = content.get_attribute("transform")
    assert zoomed != before
    box = page.locator(".drawing.after svg").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + 50)
    page.mouse.up()
    assert content.get_attribute("transform") != zoomed


def test_a_module_as_traced_says_so(opened: Opened) -> None:
    opened.row("model.embed_tokens")
    expect(opened.page.locator("#detail")).to_contain_text("No rule came near this code")
    expect(opened.page.locator("#detail")).to_contain_text("embedding")


def test_tables_have_the_passes_and_the_rules(opened: Opened) -> None:
    page = opened.page
    expect(page.locator("#passes tbody tr")).to_have_count(9)
    expect(page.locator("#rules")).to_contain_text("add_rms_norm")
    expect(page.locator("#breaks")).to_contain_text("No graph breaks")
    page.locator("#traced").get_by_role("button", name="model.embed_tokens").click()
    expect(page.locator("#detail .path")).to_have_text("model.embed_tokens")


def test_several_graphs_and_their_break(browser: Browser, broken: Report, tmp_path: Path) -> None:
    found = Opened(browser, broken, tmp_path, DESKTOP)
    expect(found.page.locator("#graphs button")).to_have_count(2)
    expect(found.page.locator("#breaks")).to_contain_text("conftest.py:")
    expect(found.page.locator("#breaks")).to_contain_text("torch._dynamo.graph_break()")
    expect(found.page.locator("#breaks")).to_contain_text("the code asks for it")
    expect(found.page.locator("#breaks")).to_contain_text("Take the call out.")
    found.page.locator("#graphs button").nth(1).click()
    expect(found.page.locator("#detail")).to_contain_text("sin")
    assert found.wrong == []
    found.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_fits_every_screen_in_both_themes(browser: Browser, odd: Report, tmp_path: Path, size: dict[str, int], scheme: str) -> None:
    found = Opened(browser, odd, tmp_path, size, scheme)
    page = found.page
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    ink, ground = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    assert contrast(ink, ground) > 7
    page.locator(".theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") != scheme
    visible = [page.locator(f".drawing.{side}").is_visible() for side in ("before", "after")]
    assert visible == ([True, True] if size is DESKTOP else [False, True])
    if size is PHONE:
        page.locator(".tabs").get_by_text("before").click()
        assert page.locator(".drawing.before").is_visible()
    assert found.wrong == []
    page.close()


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast of two CSS colours `rgb(r, g, b)`."""

    def luminance(colour: str) -> float:
        parts = [int(c) / 255 for c in colour.removeprefix("rgb(").rstrip(")").split(",")]
        r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
