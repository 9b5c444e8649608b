"""The report in a real browser, opened from disk. Skipped only where no Chromium can be started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_fixture import Fake, write_fake_run
from test_report import hostile_run
from test_report_pages import MEASURED

from reports.build import build

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
SYSTEM_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def launch(driver: object) -> object:
    """The system's Chromium, else playwright's own, fetched where it is not there; skips where neither can be had."""
    named = os.environ.get("CHROMIUM") or SYSTEM_CHROMIUM
    arguments = ["--disable-background-networking", "--autoplay-policy=no-user-gesture-required"]
    reasons = []
    for path in dict.fromkeys([named, None]):
        if path is None and not Path(driver.chromium.executable_path).exists():  # type: ignore[attr-defined]
            install = [sys.executable, "-m", "playwright", "install", "chromium"]
            try:
                subprocess.run(install, check=True, capture_output=True, timeout=300)
            except (OSError, subprocess.SubprocessError) as error:
                reasons.append(f"playwright's own cannot be fetched ({str(error)[-80:]})")
                continue
        try:
            return driver.chromium.launch(executable_path=path, args=arguments)  # type: ignore[attr-defined]
        except playwright.Error as error:
            reasons.append(f"{path or 'playwright own'}: {str(error).splitlines()[0]}")
    pytest.skip(f"no Chromium can be started ({'; '.join(reasons)}): install chromium, or name one in CHROMIUM")


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as driver:
        chromium = launch(driver)
        yield chromium
        chromium.close()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One page of each kind."""
    place = tmp_path_factory.mktemp("browser")
    write_fake_run(place / "fake", Fake(seconds=2.0, n_stimuli=8))
    write_fake_run(place / "silent", Fake(has_audio=False, name="silent", study="folder"))
    hostile_run(place / "fake", place / "hostile")
    made = {name: build([place / name], place / f"page-{name}") for name in ("fake", "silent", "hostile")}
    made["files"] = build([place / "fake"], place / "page-files", embed=False)
    (place / "results").mkdir()
    (place / "results" / "gpu.json").write_text(json.dumps(MEASURED))
    both = [place / "fake", place / "silent"]
    made["compare"] = build(both, place / "page-compare", benchmark_results=place / "results")
    return made | {"benchmarks": place / "page-compare" / "benchmarks.html"}


def until(page: object, condition: str, seconds: float = 20.0) -> None:
    """Waits for a condition; playwright's own way of waiting evaluates text in the page, which its policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):  # type: ignore[attr-defined]
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        page.wait_for_timeout(20)  # type: ignore[attr-defined]


class Opened:
    """A page and everything it complained about or asked for."""

    def __init__(self, browser: object, path: Path, width: int = 1440, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[attr-defined]
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state("load")

    def check(self) -> None:
        assert self.complaints == []
        fetched = [url for url in self.requests if not url.startswith("data:")]
        assert [url for url in fetched if not url.startswith("file:")] == []
        assert [url for url in fetched if "/sounds/" not in url] == [fetched[0]], "the page itself and nothing else"
        self.page.close()


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("name", ["fake", "silent", "hostile", "compare", "benchmarks"])
def test_page_is_quiet_and_fits(browser: object, pages: dict[str, Path], name: str, width: int) -> None:
    opened = Opened(browser, pages[name], width)
    for details in opened.page.locator("details").all():
        details.evaluate("element => element.open = true")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    opened.check()


@pytest.mark.parametrize("name", ["fake", "files"])
def test_players_load_play_and_keep_the_time(browser: object, pages: dict[str, Path], name: str) -> None:
    opened = Opened(browser, pages[name])
    page = opened.page
    until(page, "[...document.querySelectorAll('audio')].every(a => a.readyState >= 1)")
    durations = page.evaluate("[...document.querySelectorAll('audio')].map(a => a.duration)")
    assert len(durations) >= 16
    assert durations == pytest.approx([2.0] * len(durations), abs=1e-3)
    example = page.locator(".example").first
    example.locator("input").evaluate("e => { e.value = '0.3'; e.dispatchEvent(new Event('input')); }")
    page.evaluate("for (const a of document.querySelectorAll('audio')) a.playbackRate = 0.0625")
    example.locator(".pick").nth(0).click()
    until(page, "!document.querySelectorAll('audio')[0].paused")
    example.locator(".pick").nth(3).click()
    until(page, "!document.querySelectorAll('audio')[3].paused")
    times = page.evaluate("[...document.querySelectorAll('audio')].map(a => [a.paused, a.currentTime])")
    assert times[0][0], "only one row sounds at a time"
    assert times[3][1] >= times[0][1] - 0.02, "switching goes on where the other row was"
    assert 0.3 <= times[3][1] < 1.5
    heads = page.evaluate("[...document.querySelectorAll('.playhead')].map(h => h.style.transform)")
    assert heads[0] == heads[3] != ""
    until(page, "document.querySelectorAll('.pick')[3].getAttribute('aria-pressed') === 'true'")
    opened.check()


def test_listening_room_by_keyboard(browser: object, pages: dict[str, Path]) -> None:
    opened = Opened(browser, pages["fake"])
    page = opened.page
    page.evaluate("for (const a of document.querySelectorAll('audio')) a.playbackRate = 0.0625")
    page.locator(".example .play").first.focus()
    page.keyboard.press("2")
    until(page, "!document.querySelectorAll('audio')[1].paused")
    page.keyboard.press("Enter")
    until(page, "[...document.querySelectorAll('audio')].every(a => a.paused)")
    page.locator(".example .transport input").first.focus()
    before = page.locator(".example output").first.text_content()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert page.locator(".example output").first.text_content() != before
    opened.check()


def test_a_number_opens_what_stands_behind_it_and_sorts(browser: object, pages: dict[str, Path]) -> None:
    opened = Opened(browser, pages["fake"])
    page = opened.page
    page.locator(".role-claim a.value").first.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    assert dialog.locator("h2").text_content() == "eeg, WER"
    assert "Computed again from the examples: match." in dialog.locator(".facts").text_content()
    assert "--cell 'eeg/wer'" in dialog.locator(".command").text_content()
    behind = dialog.locator(".behind").text_content()
    assert "python -m eval run --config configs/default.yaml" in behind
    assert "1a5afae06a4d" in behind, "the hashes of its inputs"
    column = "[...document.querySelectorAll('dialog tbody td:nth-child(3)')].map(c => Number(c.textContent))"
    assert len(page.evaluate(column)) == 24
    dialog.locator("thead button", has_text="WER").click()
    assert page.evaluate(column) == sorted(page.evaluate(column))
    dialog.locator("thead button", has_text="WER").click()
    assert page.evaluate(column) == sorted(page.evaluate(column), reverse=True)
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    opened.check()


@pytest.mark.parametrize("name", ["fake", "compare", "benchmarks"])
def test_prints_on_paper(browser: object, pages: dict[str, Path], name: str) -> None:
    page = Opened(browser, pages[name], width=680).page  # A4 less its margins, in CSS pixels
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 680
    for hidden in ("nav", ".transport", "audio", ".exports", "dialog"):
        assert not any(element.is_visible() for element in page.locator(hidden).all())
    paper = page.pdf(format="A4", print_background=True)
    assert paper.startswith(b"%PDF")
    assert len(paper) > 20_000
    page.close()


def test_players_work_without_script(browser: object, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)  # type: ignore[attr-defined]
    page = context.new_page()
    page.goto(pages["fake"].as_uri())
    assert page.locator("audio[controls]").first.is_visible()
    assert not page.locator(".transport").first.is_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["fake", "silent", "compare", "benchmarks"])
def test_no_serious_accessibility_violation(browser: object, pages: dict[str, Path], name: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    opened = Opened(browser, pages[name], scheme=scheme)
    for details in opened.page.locator("details").all():
        details.evaluate("element => element.open = true")
    found = axe.Axe().run(opened.page).response["violations"]
    serious = {v["id"]: v["nodes"][0]["html"][:200] for v in found if v["impact"] in ("serious", "critical")}
    assert serious == {}
    opened.page.close()
