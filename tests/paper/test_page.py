"""The page as a file, and as a reader's browser draws it."""

import itertools
import json
import re
import shutil
import time
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import vl_convert
from synthetic import cell, constant, run, table_1

from dbnrun.paper import page, verdicts
from dbnrun.paper.result_set import result_set
from dbnrun.report.page import HERE, charts

CSS = (HERE / "page.css").read_text()


def page_of(runs):
    return page.page(result_set(runs))


@pytest.fixture(scope="module")
def whole():
    """The page of a full grid: three data sets, protocols and baselines, forty epochs."""
    return page_of(table_1(epochs=40))


@pytest.fixture(scope="module")
def file(tmp_path_factory, whole):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(whole)
    return path


def test_the_page_of_a_full_grid_stays_below_three_megabytes(whole):
    assert len(whole.encode()) < 3e6


class References(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]


def test_nothing_on_the_page_points_outside_it(whole):
    references = References()
    references.feed(whole)
    assert references.found and all(value.startswith(("#", "data:,")) for value in references.found)
    assert "default-src 'none'" in whole and "@import" not in CSS and "url(" not in CSS


def test_the_same_records_give_the_same_bytes():
    runs = table_1(datasets=["mnist"], protocols="A")
    assert page_of(runs) == page_of(runs)


def test_every_chart_has_a_place_of_its_own(whole):
    places = dict(re.findall(r"""class=chart id="([^"]+)" data-chart='([^']+)'""", whole))
    kinds = Counter(json.loads(chart)["kind"] for chart in places.values())
    # A data set's protocol each; and the answer shows the differences of the first protocol.
    assert kinds == {"differences": 3 * 3 + 3, "figure": 3 * 3 * 3, "explorer": 1}
    assert len(places) == whole.count("class=chart") == kinds.total()  # no two have one id


def test_verdicts_come_first_and_what_was_not_run_has_a_cell_that_says_so():
    text = page_of(table_1(datasets=["mnist"], protocols="A"))
    assert (
        text.index('id="claims"') < text.index('id="tables"') < text.index('id="figures"') < text.index('id="explorer"')
    )
    cells = re.findall(r'<td data-label="([^"]+)"', text)
    # Seven claims, of which the two on all three data sets have one cell; three protocols.
    rows = len(verdicts.CLAIMS)
    assert cells.count("MNIST") == cells.count("CIFAR-10") == 3 * (rows - 2) and cells.count("All three") == 3 * 2
    assert text.count("– not run") >= 3 * (rows - 2) * 2


def test_sensitivity_runs_have_a_row_a_value_and_a_column_a_schedule():
    runs = []
    for l2, alphas, seeds in ((1e-4, (1.0, 0.5, 0.25), 4), (1e-3, (1.0, 0.25), 3)):
        for alpha, seed in itertools.product(alphas, range(seeds)):
            content = cell(constant(alpha), seed)
            content["optimizer"]["groups"]["weights"]["weight_decay"] = l2
            runs.append(run(content, [3.0, 2.0 + alpha / 5 + seed / 100]))
    section = page_of(runs).split('id="sensitivity"')[1].split("</section>")[0]
    rows = re.findall(r"<tr><th scope=row>(.*?)</th>(.*?)</tr>", section)
    assert [name for name, _ in rows] == ["0.0001 (main), n = 4", "0.001, n = 3"]
    assert rows[1][1].count("<td>") == 3 and "<td>not run</td>" in rows[1][1] and "−0.15" in rows[1][1]


def test_text_from_a_record_cannot_become_markup():
    bad = run(cell(constant(0.5)), [3.0, 2.0])
    bad.manifest["command"] = ["dbnrun", "</script><script>alert(1)</script>"]
    for key in ("git", "device", "device_name", "threads"):
        bad.manifest[key] = f"<b>{key}"
    bad.manifest["versions"] = {"<b>torch": "<b>2"}
    bad = replace(bad, data_digest="<b>x")
    text = page_of([bad])
    assert "<script>alert" not in text and "&lt;b&gt;device_name" in text
    assert not re.search("<b>(x|git|device|device_name|threads|torch|2)", text)


def luminance(color):
    """Relative luminance as WCAG 2 defines it."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


THEMES = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", CSS, re.S)]


@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark"])
def test_text_and_curves_stand_out_from_the_page(theme):
    for name, ground in itertools.product(("text", "soft", "link", "good", "bad", "open"), ("page", "panel")):
        assert contrast(theme[name], theme[ground]) >= 4.5, name
    curves = {color for color, _ in (*charts.LOOKS.values(), *charts.OTHERS)}
    curves |= set(charts.ROLES.values()) - {charts.ROLES["other"]}
    assert all(contrast(color, theme["page"]) >= 3 for color in curves), curves


def test_neighbouring_curves_differ_without_colour():
    dashes = [look[1] for look in charts.LOOKS.values()]
    assert all(one != other for one, other in itertools.pairwise(dashes))
    looks = [*charts.LOOKS.values(), *charts.OTHERS]
    assert len({(color, str(dash)) for color, dash in looks}) == len(looks)


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium without a window; skips where it, its driver or selenium is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install '.[dev]'")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs a browser: apt-get install -y chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def shown(browser, file, width=1400, scheme="light"):
    """Open the page at a width and in a colour scheme, and wait until the explorer is drawn."""
    metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(file.as_uri())
    until(lambda: "epoch 40" in explorer_text(browser))
    return browser


def until(true, seconds=30):
    """Wait for what a browser does in its own time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "the page did not get there"
        time.sleep(0.1)


def explorer_text(browser):
    return browser.execute_script("return document.querySelector('#explore')?.textContent ?? ''")


def menu(browser, name):
    return browser.find_element("css selector", f"#explore-menus [name='{name}']")


def choose(browser, name, value):
    from selenium.webdriver.support.ui import Select

    Select(menu(browser, name)).select_by_value(value)


def hovered(browser):
    """What the tooltip says with the pointer in the middle of the explorer's plot."""
    from selenium.webdriver import ActionChains

    plot = browser.find_element("css selector", "#explore svg")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    for offset in (0, 5):  # a pointer that arrives and moves
        ActionChains(browser).move_to_element_with_offset(plot, offset, 40 + offset).perform()
    tooltip = "#vg-tooltip-element.visible"
    until(lambda: browser.find_elements("css selector", tooltip))
    text = browser.find_element("css selector", tooltip).text
    ActionChains(browser).move_to_element(menu(browser, "dataset")).perform()  # away, so that the next one is new
    until(lambda: not browser.find_elements("css selector", tooltip))
    return text


@pytest.mark.parametrize(
    ("epochs", "labels"), [(1, "1"), (2, "1 2"), (3, "1 2 3"), (4, "1 2 3 4"), (10, "1 2 3 4 5 6 7 8 9 10")]
)
def test_the_ticks_of_epochs_are_whole_numbers_and_each_stands_once(browser, epochs, labels):
    script = (HERE / "charts.js").read_text()
    x = browser.execute_script(script + "return EPOCHS")
    y = {"field": "epoch", "type": "quantitative", "axis": None}
    data = {"values": [{"epoch": epoch} for epoch in range(1, epochs + 1)]}
    drawn = vl_convert.vegalite_to_svg({"data": data, "width": 600, "mark": "line", "encoding": {"x": x, "y": y}})
    assert " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", drawn)) == labels + " epoch"


def test_the_explorer_shows_what_a_reader_picks(browser, file):
    shown(browser, file)
    assert "MNIST, protocol A: test error [%]" in explorer_text(browser)
    assert "α = 0.25, epoch 40" in explorer_text(browser)
    before = hovered(browser)
    assert "seeds" in before and "mean" in before
    choose(browser, "dataset", "cifar10")
    until(lambda: "CIFAR-10, protocol A: test error [%]" in explorer_text(browser))
    choose(browser, "curve", "0")
    until(lambda: "α = 0, epoch 40: 20" in explorer_text(browser))
    after = hovered(browser)
    assert after != before
    choose(browser, "measure", "val_loss")
    until(lambda: "validation loss [nat]" in explorer_text(browser) and "epoch 40: 2.2" in explorer_text(browser))


def test_the_epochs_slider_moves_by_keyboard_and_says_its_values(browser, file):
    from selenium.webdriver.common.keys import Keys

    shown(browser, file)
    menu(browser, "at").send_keys(Keys.ARROW_LEFT * 3)
    until(lambda: "α = 0.25, epoch 37" in explorer_text(browser) and "BN (PyTorch), epoch 37" in explorer_text(browser))


def test_every_control_is_reached_by_the_tab_key(browser, file):
    from selenium.webdriver.common.keys import Keys

    shown(browser, file)
    menu(browser, "dataset").send_keys("")
    names = []
    for _ in range(6):
        focused = browser.switch_to.active_element
        names.append(focused.get_attribute("name"))
        focused.send_keys(Keys.TAB)
    assert names == ["dataset", "protocol", "curve", "measure", "beside", "at"]


def test_a_data_set_with_fewer_epochs_says_its_last(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page_of(table_1(["mnist"], "A", epochs=40) + table_1(["ni"], "A", epochs=10)))
    shown(browser, path)
    choose(browser, "dataset", "ni")
    until(lambda: "α = 0.25, epoch 10" in explorer_text(browser))


def test_a_choice_that_was_not_run_says_so(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page_of(table_1(datasets=["mnist"], protocols="A", epochs=40)))
    shown(browser, path)
    choose(browser, "dataset", "ni")
    until(lambda: "not run" in explorer_text(browser))
    choose(browser, "dataset", "mnist")
    until(lambda: "not run" not in explorer_text(browser) and "α = 0.25, epoch 40" in explorer_text(browser))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_draws_without_error_request_or_sideways_scroll(browser, file, width, scheme):
    shown(browser, file, width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    drawn = "return [...document.querySelectorAll('.chart')].every(chart => chart.querySelector('svg'))"
    until(lambda: browser.execute_script(drawn))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    title = "#explore .role-title-text text"
    fill = browser.execute_script(f"return getComputedStyle(document.querySelector('{title}')).fill")
    theme = THEMES[scheme == "dark"]
    assert fill == "rgb({}, {}, {})".format(*(int(theme["text"][i : i + 2], 16) for i in (1, 3, 5)))
