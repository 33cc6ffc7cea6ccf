"""The page in a browser: drawn, usable by mouse and keyboard, on any width, without a network."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.report.report_runs import compared, reported, streamed

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="chromium and chromedriver are not installed (Debian: chromium, chromium-driver)",
)
LIGHT, DARK = "rgb(253, 253, 251)", "rgb(22, 24, 27)"
_DRAWN = """
    return [...document.querySelectorAll('.chart')].filter(chart => chart.checkVisibility())
        .map(chart => chart.querySelectorAll('.point, .js-line, .heatmaplayer image').length)
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything in it: two methods with stages, a seed that failed, another student.

    The student of simkd is larger. With two different costs there would be no charts of them.
    """
    path = tmp_path_factory.mktemp("browser")
    compared(path / "runs", "ce", "kd", "dskd", "dskd:beta=0.1", "simkd", seeds=2)
    (path / "runs/ce/seed1/result.json").unlink()
    return reported([path / "runs"], path / "report.html")


@pytest.fixture(scope="module")
def chrome() -> Iterator[Chrome]:
    """A browser that reaches no host."""
    assert CHROMIUM is not None
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--window-size=1280,900",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(chrome: Chrome, report: Path) -> Chrome:
    """The page, fresh, on a wide screen that asks for light colours."""
    prefer(chrome, "light")
    chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    return opened(chrome, report)


@pytest.fixture
def kept(chrome: Chrome, request: pytest.FixtureRequest) -> Chrome:
    """The page, for a test that leaves it as it was. The next such test has it without a load."""
    if not chrome.execute_script("return window.isKept"):
        request.getfixturevalue("page").execute_script("window.isKept = true")
    return chrome


def opened(chrome: Chrome, report: Path) -> Chrome:
    chrome.get(report.as_uri())
    wait_until_drawn(chrome)
    return chrome


def log_of(chrome: Any, kind: str) -> list[dict[str, Any]]:
    """What the browser noted since it was asked last."""
    entries: list[dict[str, Any]] = chrome.get_log(kind)
    return entries


def prefer(chrome: Chrome, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def patient(chrome: Chrome) -> WebDriverWait[Chrome]:
    """Looks often: what the tests wait for comes soon."""
    return WebDriverWait(chrome, 20, poll_frequency=0.05)


def wait_until_drawn(chrome: Chrome) -> None:
    patient(chrome).until(lambda c: all(c.execute_script(_DRAWN)))


def style(chrome: Chrome, selector: str, name: str) -> Any:
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    return chrome.execute_script(script, selector, name)


def column(chrome: Chrome, number: int) -> list[str]:
    """What the cells of a column are sorted by, from the top."""
    cells = chrome.find_elements(By.CSS_SELECTOR, f".methods tbody tr > :nth-child({number})")
    return [cell.get_attribute("data-value") or "" for cell in cells]


def head(chrome: Chrome, words: str) -> tuple[int, WebElement]:
    """The number of a column, from 1, and its button."""
    buttons = chrome.find_elements(By.CSS_SELECTOR, ".methods thead button")
    return next((i + 1, b) for i, b in enumerate(buttons) if words in b.text)


@pytest.mark.slow
def test_every_chart_is_drawn_without_a_word_on_the_console(kept: Chrome) -> None:
    assert len(kept.execute_script(_DRAWN)) == 15
    assert log_of(kept, "browser") == []


@pytest.mark.slow
def test_nothing_is_asked_of_a_network(kept: Chrome) -> None:
    asked = [
        message["params"]["request"]["url"]
        for entry in log_of(kept, "performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert asked
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "blob"}


@pytest.mark.slow
def test_a_method_is_chosen_for_all_charts_at_once(kept: Chrome) -> None:
    script = """
        return [...document.querySelectorAll('.chart')].filter(chart => chart.data).map(chart =>
            chart.data.filter(trace => trace.meta === 'kd' && trace.visible !== false).length)
    """
    before = kept.execute_script(script)
    assert before[:5] == [2, 1, 1, 1, 1]  # a band and a line, then a point a chart
    first, second = kept.find_elements(By.CSS_SELECTOR, "input[data-method=kd]")
    first.send_keys(Keys.SPACE)
    assert kept.execute_script(script)[:5] == [0] * 5
    assert not second.is_selected()
    second.click()
    assert kept.execute_script(script) == before


@pytest.mark.slow
def test_everything_is_reached_by_the_tab_key(kept: Chrome) -> None:
    kept.execute_script("""
        window.reached = [];
        addEventListener('focusin', ({target}) => window.reached.push(
            [target.localName, target.getAttribute('role')]));
    """)
    ActionChains(kept).send_keys(Keys.TAB * 60).perform()
    reached = kept.execute_script("return window.reached")
    assert len(reached) <= 60
    assert {name for name, _ in reached} >= {"a", "button", "input", "summary", "pre"}
    assert any(role == "region" for _, role in reached)


@pytest.mark.slow
def test_the_table_is_sorted_by_mouse_and_by_keyboard(page: Chrome) -> None:
    number, button = head(page, "test accuracy")
    values = [float(value) for value in column(page, number)]
    assert values == sorted(values, reverse=True)
    button.click()
    assert [float(value) for value in column(page, number)] == sorted(values)
    assert button.find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
    number, button = head(page, "method")
    button.send_keys(Keys.ENTER)
    assert column(page, number) == ["ce", "dskd", "dskd:beta=0.1", "kd", "simkd"]
    button.send_keys(Keys.SPACE)
    assert column(page, number) == ["simkd", "kd", "dskd:beta=0.1", "dskd", "ce"]
    sorted_by = page.find_elements(By.CSS_SELECTOR, "th[aria-sort]:not([aria-sort=none])")
    assert len(sorted_by) == 1


@pytest.mark.slow
def test_what_has_no_value_stays_below(page: Chrome) -> None:
    number, button = head(page, "agreement")
    for _ in range(2):
        button.click()
        values = column(page, number)
        assert values[-1] == ""
        assert all(values[:-1])


@pytest.mark.slow
def test_the_theme_follows_the_system_and_the_button(page: Chrome) -> None:
    def colours() -> tuple[str, str]:
        return style(page, "body", "backgroundColor"), style(page, ".xtick text", "fill")

    light = colours()
    assert light[0] == LIGHT
    prefer(page, "dark")
    # The browser tells the page of another scheme some time after its style has it.
    patient(page).until(lambda _: colours()[1] != light[1])
    assert colours()[0] == DARK
    button = page.find_element(By.ID, "theme")
    assert button.text == "Light theme"
    button.click()
    assert button.text == "Dark theme"
    patient(page).until(lambda _: colours() == light)


@pytest.mark.slow
def test_charts_that_are_folded_away_are_drawn_when_they_open(page: Chrome) -> None:
    page.find_element(By.CSS_SELECTOR, "#stages summary").send_keys(Keys.ENTER)
    patient(page).until(lambda c: len(c.execute_script(_DRAWN)) == 19)
    wait_until_drawn(page)


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 390, 768])
def test_the_page_is_never_wider_than_the_screen(chrome: Chrome, report: Path, width: int) -> None:
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wide, table, box, charts = opened(chrome, report).execute_script("""
        const box = document.querySelector('#table .scroll');
        const charts = [...document.querySelectorAll('.chart')];
        return [document.documentElement.scrollWidth, box.scrollWidth, box.clientWidth,
            charts.map(chart => chart.getBoundingClientRect().width)];
    """)
    assert wide <= width
    assert table > box  # it scrolls in its own box
    assert charts
    assert max(charts) <= width


@pytest.mark.slow
def test_it_prints_in_light_and_goes_back(page: Chrome) -> None:
    prefer(page, "dark")
    page.execute_script("""
        window.seen = [];
        addEventListener('afterprint', () => window.seen.push('after'));
        addEventListener('beforeprint', () => window.seen.push(
            document.documentElement.dataset.theme,
            Math.max(...[...document.querySelectorAll('.chart svg')].map(s => s.clientWidth))));
    """)
    assert page.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"]
    theme, widest, after = page.execute_script("return window.seen")
    assert (theme, after) == ("light", "after")
    assert 0 < widest <= 273 / 25.4 * 96  # of a sheet of A4 on its side, less its margins
    assert style(page, "body", "backgroundColor") == DARK
    assert page.execute_script("return document.documentElement.className") == ""


@pytest.mark.slow
def test_names_of_many_classes_never_overlap(chrome: Chrome, tmp_path: Path) -> None:
    report = reported([streamed(tmp_path, 40)], tmp_path / "report.html")
    script = """
        const ticks = (axis) => document.querySelectorAll(`#chart-confusion .${axis}tick`);
        return ['x', 'y'].map(axis => [...ticks(axis)]
            .filter(tick => tick.querySelector('text') || tick.matches('text'))
            .map(tick => tick.getBoundingClientRect()[axis]))
    """
    numbers = {}
    for width in (1280, 500):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        opened(chrome, report)
        for axis, places in zip("xy", chrome.execute_script(script), strict=True):
            ends = sorted(places)
            numbers[axis, width] = len(ends)
            assert all(b - a > 9 for a, b in itertools.pairwise(ends))  # letters are 10 px high
        assert chrome.execute_script("return document.documentElement.scrollWidth") <= width
    assert numbers == {("x", 1280): 40, ("y", 1280): 40, ("x", 500): 0, ("y", 500): 40}
