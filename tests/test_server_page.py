"""The page at / in a headless Chromium: what it shows at the end is what the API answers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from serving import Served, served
from speaking import every_other, make_speaker, make_speaking_bundle

from runtime import Model, load

ROOT = Path(__file__).parent.parent
PROMPT = (ROOT / "samples" / "prompt_math.txt").read_text(encoding="utf-8").rstrip()
PAGE = (ROOT / "runtime" / "server" / "page.html").read_text(encoding="utf-8")
NAMES = ("chromium", "chromium-headless-shell", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium here: none of {', '.join(NAMES)} is on the path")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def modes_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from test_commands_modes import write_bundle

    return write_bundle(tmp_path_factory.mktemp("modes"))


@pytest.fixture(scope="module")
def model() -> Model:
    return load(ROOT / "samples" / "student.bundle", threads=1)


@pytest.fixture(scope="module")
def student(model: Model) -> Iterator[Served]:
    with served(model.share()) as server:
        yield server


def opened(browser: Any, server: Served, **look: Any) -> tuple[Any, list[str]]:
    """The page, and what it complains of or fetches from elsewhere."""
    page, wrong = browser.new_page(**look), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    page.on("request", lambda asked: None if asked.url.startswith((server.url, "data:")) else wrong.append(asked.url))
    page.goto(server.url)
    page.locator("#model", has_text="student").wait_for()
    return page, wrong


def answered(page: Any, prompt: str) -> str:
    """The text on the page once an answer is whole."""
    page.fill("#prompt", prompt)
    page.click("#go")
    page.wait_for_selector("#answer[data-done=true]")
    return str(page.locator("#answer").text_content())


@pytest.mark.smoke
@pytest.mark.browser
def test_the_page_ends_with_the_api_s_answer(browser: Any, student: Served, model: Model) -> None:
    page, wrong = opened(browser, student)
    expected = model.generate(PROMPT)
    assert answered(page, PROMPT) == expected.text
    assert page.locator("#forwards").text_content() == str(expected.result.forwards)
    assert page.locator("#tokens").text_content() == str(len(expected.result.token_ids))
    assert page.locator("#single").text_content() == str(len(expected.result.token_ids) - 1)  # the prompt's gives one
    page.select_option("#mode", "block")
    page.locator("#threshold").fill("0.5")
    faster = model.generate(PROMPT, threshold=0.5)
    assert answered(page, PROMPT) == faster.text
    assert page.locator("#forwards").text_content() == str(faster.result.forwards) != str(expected.result.forwards)
    assert wrong == []
    page.close()


@pytest.mark.browser
def test_a_pasted_prompt_is_trimmed_where_the_user_sees_it(browser: Any, student: Served, model: Model) -> None:
    page, wrong = opened(browser, student)
    assert answered(page, f"\n {PROMPT}\n\n") == model.generate(PROMPT).text
    assert page.input_value("#prompt") == PROMPT and wrong == []
    page.close()


@pytest.mark.browser
def test_a_replay_goes_through_the_steps_and_ends_alike(browser: Any, student: Served) -> None:
    page, wrong = opened(browser, student)
    page.select_option("#mode", "block")
    text = answered(page, PROMPT)
    page.select_option("#color", "step")
    page.click("#again")
    seen = False
    for _ in range(200):  # a frame is there for 250 ms, and wait_for_selector looks every 500 ms
        seen = seen or page.locator("#answer .open").count() > 0
        page.wait_for_timeout(30)
    assert seen
    page.wait_for_selector("#answer[data-done=true]")
    assert page.locator("#answer").text_content() == text and wrong == []
    page.close()


@pytest.mark.browser
def test_a_temperature_may_be_set_where_the_bundle_can_be_sampled(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "drawn").mkdir()
    greedy = make_speaker(tmp_path, "hi", "a quiet answer")
    bundle = make_speaking_bundle(tmp_path / "drawn", "hi", "a quiet answer", every_other, others="wxyz")
    for model, can in ((greedy, False), (load(bundle, threads=1), True)):
        with served(model) as server:
            page, wrong = opened(browser, server)
            page.wait_for_selector("#gate:visible")
            assert page.locator("#sampling").is_visible() == can and answered(page, "hi") == "a quiet answer"
            if can:
                page.locator("#temperature").fill("2")
                assert page.locator("#heat").text_content() == "2.0" and answered(page, "hi") != "a quiet answer"
            assert wrong == []
            page.close()


@pytest.mark.browser
def test_text_of_the_model_stays_text(browser: Any, tmp_path: Path) -> None:
    said = "<img src=x onerror=alert(1)> & <b>5€</b>"
    with served(make_speaker(tmp_path, "hi", said, every_other, capacity=64)) as server:
        page, wrong = opened(browser, server)
        assert answered(page, "hi") == said and page.locator("#answer img, #answer b").count() == 0
        assert wrong == []
        page.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_light_and_dark(browser: Any, student: Served, scheme: str, tmp_path: Path) -> None:
    page, wrong = opened(browser, student, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    answered(page, PROMPT)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) > 380) == (scheme == "light") and wrong == []
    page.screenshot(path=os.environ.get("BLOCKSTEP_SHOTS", str(tmp_path)) + f"/phone-{scheme}.png", full_page=True)
    page.close()


@pytest.mark.browser
def test_a_key_is_asked_for_and_a_mistake_told(browser: Any, model: Model) -> None:
    with served(model.share(), keys=("one",)) as server:
        page = browser.new_page()
        page.goto(server.url)
        page.wait_for_selector("#key")
        page.fill("#key", "one")
        assert answered(page, PROMPT) == model.generate(PROMPT).text
        page.fill("#prompt", "")
        page.click("#go")
        page.locator("#error", has_text="content").wait_for()
        page.close()


def test_the_page_needs_no_other_host() -> None:
    linked: list[str | None] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            linked.extend(value for name, value in attrs if name in ("src", "href"))

    Links().feed(PAGE)
    assert linked == ["data:,"] and "://" not in PAGE and "innerHTML" not in PAGE


@pytest.mark.browser
def test_a_model_of_several_modes_lets_one_be_chosen(browser: Any, modes_bundle: Path) -> None:
    model = load(modes_bundle, threads=1)
    with served(model.share()) as server:
        page = browser.new_page()
        page.goto(server.url)
        page.locator("#mode option").first.wait_for(state="attached")
        assert page.locator("#mode option").all_text_contents() == ["block", "speculative", "causal"]
        found = {}
        for mode in ("block", "speculative", "causal"):
            page.select_option("#mode", mode)
            assert page.locator("#gate").is_visible() == (mode == "block")
            text, expected = answered(page, "%#'%#'"), model.generate("%#'%#'", mode=mode)
            assert text == expected.text
            found[mode] = int(page.locator("#forwards").text_content())
            assert found[mode] == expected.result.forwards
        assert found["speculative"] < found["causal"]
        page.close()
