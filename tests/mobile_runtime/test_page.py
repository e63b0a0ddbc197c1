"""The page in a real browser: it fits a phone, loads nothing, and shows what the report says."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from mobile_runtime.cli import parity as command
from mobile_runtime.compare import OperatorNoise
from mobile_runtime.page import page
from mobile_runtime.parity import measure_parity, parity
from mobile_runtime.report import ParityResult, read_report
from mobile_runtime.samples import KL_EDGES, Continuation

NASTY = '<script>alert(1)</script> & "quoted" <img src=http://example.invalid/x.png> 你好 مرحبا 🙂'


@pytest.fixture(scope="module")
def result(world, tmp_path_factory: pytest.TempPathFactory) -> ParityResult:
    return measure_parity(
        world.base, world.adapters["ada"], 1, cache_dir=tmp_path_factory.mktemp("cache")
    )


@pytest.fixture(scope="module")
def broken(result: ParityResult) -> ParityResult:
    """A failing gate, texts that differ, and a user whose items are made to break a page."""
    gate = dataclasses.replace(result.gates[0], passed=False, value=NASTY)
    texts = [
        Continuation(NASTY, NASTY * 9, "both say " + NASTY, " but then " + NASTY, NASTY),
        Continuation("x" * 300, "y" * 300, "z" * 900, "", ""),
    ]
    return dataclasses.replace(
        result, passed=False, stage_at_fault="tokenizer", gates=[gate, *result.gates[1:]],
        samples=dataclasses.replace(result.samples, texts=[*texts, *result.samples.texts]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def browser(program: Callable[[str, str], str]) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    chromium = program("chromium", "apt-get install chromium")
    unsandboxed = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as started:
        running = started.chromium.launch(executable_path=chromium, args=unsandboxed)
        yield running
        running.close()


@pytest.mark.parametrize("which", ["result", "broken"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_it_without_overflow_requests_or_complaints(
    request, browser, tmp_path, which, scheme, width
) -> None:
    file = tmp_path / "page.html"
    file.write_text(page(request.getfixturevalue(which)), "utf-8")
    said: list[str] = []
    asked: list[str] = []
    tab = browser.new_page(viewport={"width": width, "height": 780}, color_scheme=scheme)
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: said.append(dialog.message))
    tab.on("request", lambda each: asked.append(each.url))
    tab.goto(file.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    outside = tab.evaluate(
        "[...document.querySelectorAll('body *:not(svg *)')].filter("
        f"each => each.getBoundingClientRect().right > {width} + 1).map(each => each.outerHTML)"
    )
    assert outside == []
    assert said == []
    assert asked == [file.as_uri()]
    assert tab.locator("script, img").count() == 0
    for picture in tab.locator("svg").all():
        named = picture.get_attribute("aria-labelledby").split()
        assert all(tab.locator(f"[id='{name}']").text_content() for name in named)
    assert contrast(tab, "td.what") >= 4.5
    assert contrast(tab, "header h1") >= 4.5
    assert contrast(tab, "figcaption") >= 4.5
    tab.close()


def contrast(tab: Any, selector: str) -> float:
    """WCAG 2.2's contrast ratio of an element's text to what it stands on."""
    text, back = tab.evaluate(
        """selector => {
            const element = document.querySelector(selector)
            let behind = element
            const colour = each => getComputedStyle(each).backgroundColor
            while (colour(behind) === 'rgba(0, 0, 0, 0)') behind = behind.parentElement
            return [getComputedStyle(element).color, colour(behind)]
        }""",
        selector,
    )
    light, dark = sorted((luminance(text), luminance(back)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_everything_of_the_report_is_on_it(result) -> None:
    text = page(result)
    assert "Parity of the adapter: sound" in text
    assert all(gate.name in text for gate in result.gates)
    assert all(digest in text for digest in result.digests.values())
    assert f"{len(result.gates)} of {len(result.gates)} gates" in text
    assert text.count("<svg") == 4
    assert set(result.operators) == {"merge", "quantization"}
    assert min(min(pair) for pair in result.operators["merge"].sqnr.values()) > 100  # it rounds
    assert f"noise rises most at {result.operators['quantization'].worst}." in text


def test_a_bar_for_each_layers_output_and_for_the_logits(result) -> None:
    sqnr = {
        "model.embed_tokens": (9.0, 8.0), "model.layers.0.norm": (8.0, 7.0),
        "model.layers.0.down": (7.0, 6.0), "model.layers.1.norm": (5.0, 4.0),
        "model.norm": (3.0, 2.0), "lm_head": (2.0, 1.0),
    }  # fmt: skip
    noise = OperatorNoise(sqnr, "model.layers.0.down")
    text = page(dataclasses.replace(result, operators={"quantization": noise}))
    assert re.findall(r"<title>(\d: \d\.0)</title>", text) == ["0: 5.0", "1: 3.0", "2: 1.0"]
    table = re.findall(r"<code>(\w+)</code></td><td class=.number.>([\d.]+ → [\d.]+)</td>", text)
    assert table == [("norm", "8.0 → 7.0"), ("down", "7.0 → 6.0")]


def test_where_the_device_chooses_otherwise_is_marked(broken) -> None:
    text = page(broken)
    assert "Stage at fault: <strong>tokenizer</strong>" in text
    assert text.count("<mark>") >= 2
    assert "<script" not in text
    assert "<img" not in text


def test_samples_count_every_position_once(result) -> None:
    for counts in result.samples.kl.values():
        assert len(counts) == len(KL_EDGES) - 1
        assert sum(counts) == result.positions
    assert len(result.samples.logits) == len(result.samples.effect) == 300
    assert max(abs(x - y) for x, y in result.samples.logits) < 1e-3


def test_texts_are_what_the_reference_goes_on_with(world, result) -> None:
    from mobile_runtime.prompt import open_prompt
    from protos.golden import read_golden

    golden, prompt = read_golden(world.adapters["ada"]), open_prompt(world.base)
    said = {text.name: text for text in result.samples.texts}
    for each in golden.prompts:
        assert said[each.name].agreed == prompt.decode(each.continuation)
        assert not said[each.name].device


def test_the_command_writes_it_and_a_kept_report_gives_the_same(world, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    asked = ["--base-bundle", str(world.base), "--threads", "1", "--out", str(tmp_path / "report")]
    first, again = tmp_path / "new" / "first.html", tmp_path / "again.html"
    for out in (first, again):
        done = CliRunner().invoke(command, [*asked, "--html", str(out)], catch_exceptions=False)
        assert done.exit_code == 0
    assert first.read_bytes() == again.read_bytes()
    report, _ = parity(world.base, None, tmp_path / "report", 1)
    assert page(read_report(report)) == first.read_text("utf-8")
