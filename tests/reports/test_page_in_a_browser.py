"""The page of a comparison in a headless Chromium; skipped where there is none."""

import shutil
from statistics import fmean

import pytest

from fed.reports.statistics import differences
from support.foreign_runs import EVIL, NAMES

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser(path, tmp_path_factory):
    """Chromium with the page open, 1280 by 900 pixels."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium or chromedriver is not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    # With its path given, selenium does not look for a driver to download.
    driver = webdriver.Chrome(options=options, service=Service(executable_path=DRIVER))
    try:
        driver.set_page_load_timeout(60)
        driver.set_script_timeout(20)
        resize(driver, 1280)
        driver.get(path.as_uri())
        yield driver
    finally:
        driver.quit()


def resize(driver, width):
    """Make the window so wide, narrower than a real one can be."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def point_at(driver, plot, x, y):
    """Move the mouse to a place in data coordinates, and say what then appears."""
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.support.wait import WebDriverWait

    left, top = driver.execute_script(
        """const plot = document.querySelectorAll(".plot")[arguments[0]], layout = plot._fullLayout;
        plot.scrollIntoView({block: "center"});
        const box = plot.getBoundingClientRect();
        return [box.left + layout.xaxis._offset + layout.xaxis.l2p(arguments[1]),
                box.top + layout.yaxis._offset + layout.yaxis.l2p(arguments[2])];""",
        plot,
        x,
        y,
    )
    for shift in (-3, 0):  # plotly answers to a movement
        actions = ActionBuilder(driver)
        actions.pointer_action.move_to_location(round(left) + shift, round(top))
        actions.perform()
    script = """const label = document.querySelectorAll(".plot")[arguments[0]].querySelector(".hoverlayer .hovertext");
        return label && [...label.querySelectorAll("text .line, text")].map((part) => part.textContent).join(" ")"""
    return WebDriverWait(driver, 20).until(lambda _: driver.execute_script(script, plot))


def xs_of_curves(driver):
    """x values of every curve's lines."""
    return driver.execute_script(
        """return [...document.querySelectorAll(".curve")].map((plot) =>
        plot.calcdata.map((trace) => trace.map((point) => point.x)))"""
    )


def click(driver, name, value):
    driver.execute_script(
        """const found = [...document.querySelectorAll("button")].find((b) => b.dataset[arguments[0]] === arguments[1]);
        found.click();""",
        name,
        value,
    )


def test_in_a_browser_everything_is_drawn_without_an_error(browser, parsed):
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    drawn = browser.execute_script(
        """return [...document.querySelectorAll(".js-plotly-plot")].map((plot) =>
        [...plot.querySelectorAll(".scatterlayer .js-line, .errorbar path, .bars path, .heatmaplayer image")]
        .filter((mark) => mark.getAttribute("d") || mark.getAttribute("href")).length)"""
    )
    assert len(drawn) == len(parsed.figures) == 1 + 4 + 1 + 2
    assert min(drawn) > 0
    assert browser.title == f"Comparison {EVIL}"
    refused = browser.execute_script(
        """return [...document.querySelectorAll(".plot")]
        .flatMap((plot) => Plotly.validate(plot.data, plot.layout) || [])
        .filter((complaint) => complaint.code !== "unused").map((complaint) => complaint.msg)"""
    )
    assert refused == []


def test_in_a_browser_pointing_at_a_curve_tells_its_value(browser, methods):
    both = [run.points[3] for run in methods[2].runs]
    a, b = (point.metrics["loss"] for point in both)
    told = point_at(browser, 3, both[0].pairs, (a + b) / 2)
    assert f"loss {(a + b) / 2:.4g} ± {abs(a - b) / 2:.2g}" in told
    assert "centralized" in told and f"round 3, {both[0].pairs:,} pairs, {both[0].seconds:.3g} s" in told


def test_in_a_browser_pointing_at_a_client_names_its_group_as_it_is(browser):
    told = point_at(browser, 5, 10, 2)
    assert f"{EVIL}: 80 of 80 pairs" in told and "client 2" in told


def test_in_a_browser_the_horizontal_axis_can_be_chosen(browser, methods):
    pairs, rounds = [320 * r for r in range(7)], list(range(7))
    seconds = [fmean(run.points[r].seconds for run in methods[0].runs) for r in rounds]
    assert xs_of_curves(browser)[1][0] == pairs
    for name, expected in (("rounds", rounds), ("time", seconds), ("pairs", pairs)):
        click(browser, "axis", name)
        assert [of[0] for of in xs_of_curves(browser)[1:]] == [expected] * 3
        pressed = browser.execute_script(
            """return [...document.querySelectorAll('[data-axis][aria-pressed="true"]')].map((b) => b.dataset.axis)"""
        )
        assert pressed == [name]


def test_in_a_browser_a_method_can_be_hidden_and_shown(browser):
    def visible():
        return browser.execute_script(
            """return [...new Set([...document.querySelectorAll(".curve")].flatMap((plot) =>
            plot._fullData.filter((trace) => trace.visible).map((trace) => trace.meta.method)))]"""
        )

    assert visible() == list(NAMES)
    click(browser, "method", NAMES[1])
    assert visible() == [NAMES[0], *NAMES[2:]]
    click(browser, "method", NAMES[1])
    assert visible() == list(NAMES)


def test_in_a_browser_nothing_is_fetched_and_nothing_can_be_uploaded(browser):
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in fetched if not name.startswith(("data:", "blob:"))] == []
    buttons = browser.execute_script(
        """return [...document.querySelectorAll(".modebar-btn")].map((b) => b.dataset.title)"""
    )
    assert set(buttons) == {"Download plot as a PNG", "Zoom in", "Zoom out", "Reset axes"}


def test_in_a_browser_pointing_at_a_difference_tells_its_interval(browser, methods):
    found = differences(methods)[NAMES[0], "local"]
    told = point_at(browser, 0, found.mean, 2)  # fedpo against fedavg, centralized, local
    assert told.startswith("fedpo minus local") and f"[{found.low:z.3f}, {found.high:z.3f}]" in told


def test_in_a_browser_no_table_is_wider_than_a_telephone(browser):
    resize(browser, 390)
    cut = browser.execute_script(
        """return [...document.querySelectorAll(".scroll")].filter((box) => box.scrollWidth > box.clientWidth).length"""
    )
    heads, names, hidden = browser.execute_script(
        """const cells = [...document.querySelectorAll("td")];
        return [cells.map((cell) => getComputedStyle(cell, "::before").content),
        cells.map((cell) => JSON.stringify(cell.dataset.head)),
        cells.filter((cell) => cell.scrollWidth > cell.clientWidth).length]"""
    )
    resize(browser, 1280)
    assert cut == hidden == 0
    assert len(heads) > 0 and heads == names


@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser_the_page_is_no_wider_than_the_window(browser, width):
    resize(browser, width)
    browser.execute_async_script("setTimeout(arguments[0], 500)")  # figures follow the window
    page, window, widest = browser.execute_script(
        """return [document.documentElement.scrollWidth, innerWidth,
        Math.max(...[...document.querySelectorAll(".main-svg")].map((svg) => svg.getBoundingClientRect().right))]"""
    )
    assert window == width
    assert page <= width and widest <= width
