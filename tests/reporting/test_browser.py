"""The page in a real browser: sizes, themes, keyboard, touch, paper, no script. Needs Chromium and playwright."""

import io
import itertools
import os
import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright (development tools) is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SIZES = {"phone": (360, 800), "tablet": (861, 1100), "window": (1440, 900)}
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
OVERLAPS = """() => {
  const found = [];
  for (const chart of document.querySelectorAll("svg")) {
    if (!chart.checkVisibility()) continue;
    const words = [...chart.querySelectorAll("text")].map((one) => [one.textContent, one.getBoundingClientRect()]);
    for (const [word, box] of words) if (box.left < 0 || box.right > innerWidth) found.push(`${word} is cut off`);
    for (const [place, [word, box]] of words.entries()) {
      for (const [other, its] of words.slice(place + 1)) {
        const across = Math.min(box.right, its.right) - Math.max(box.left, its.left);
        const down = Math.min(box.bottom, its.bottom) - Math.max(box.top, its.top);
        if (across > 1 && down > 3) found.push(`${word} and ${other}`);
      }
    }
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the path")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address(page, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def visit(browser, address):
    """Opens the page; at the end nothing may have been asked of anybody, nor gone wrong."""
    opened, asked, wrong = [], [], []

    def open_page(size="window", scheme="light", **options):
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce", **options
        )
        context.set_default_timeout(10_000)
        opened.append(context)
        context.on("request", lambda request: asked.append(request.url))
        shown = context.new_page()
        shown.on("pageerror", lambda error: wrong.append(str(error)))
        shown.on("console", lambda message: wrong.append(message.text))
        shown.goto(address)
        return shown

    yield open_page
    for context in opened:
        context.close()
    assert wrong == []
    assert {url for url in asked if not url.startswith("data:")} == {address}


def background(shown):
    return shown.evaluate("getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize(("size", "scheme"), list(itertools.product(SIZES, ("light", "dark"))))
def test_fits_and_shows_its_headlines(visit, size, scheme):
    shown = visit(size, scheme)
    assert shown.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]
    for words in ("as fast", "Speed-up of generation", "Quality kept", "Parameters kept", "Time of the run"):
        assert shown.get_by_text(words, exact=False).first.is_visible(), words
    assert shown.evaluate(OVERLAPS) == []
    dark = background(shown) == "rgb(14, 20, 24)"
    assert dark == (scheme == "dark")


@pytest.mark.parametrize("size", ["phone", "window"])
def test_every_chart_is_drawn(visit, size):
    images = pytest.importorskip("PIL.Image")
    shown = visit(size)
    charts = shown.locator("main .chart svg:visible")
    assert charts.count() >= 10
    for place in range(charts.count()):
        chart = charts.nth(place)
        picture = images.open(io.BytesIO(chart.screenshot())).convert("RGB")
        colours = picture.getcolors(2**20)
        assert len(colours) > 20, chart.get_attribute("aria-label")
        assert max(count for count, _ in colours) < 0.97 * picture.width * picture.height


def test_pointing_at_a_point_shows_its_tip_and_its_layers(visit):
    shown = visit()
    tip, pane = shown.locator("#tip"), shown.locator(".pane > figure:visible")
    assert pane.get_attribute("data-for") == "chosen"
    point = shown.locator("#front svg:visible .mark[data-shows=point-2]")
    point.hover()
    assert tip.is_visible()
    assert tip.inner_text().startswith("Point 3\nbatch size: ")
    assert "tokens/s" in tip.inner_text()
    assert pane.count() == 1
    assert pane.get_attribute("data-for") == "point-2"
    assert pane.locator("h3").inner_text() == "Point 3"
    shown.mouse.move(5, 200)
    assert not tip.is_visible()
    assert pane.get_attribute("data-for") == "point-2"  # it stays to be read


def test_tips_stay_inside_the_window(visit):
    shown = visit("phone")
    points = shown.locator("#front svg:visible .mark")
    for place in (points.count() - 2, points.count() - 3):  # the parent at the left, the last point at the right
        points.nth(place).hover()
        box = shown.locator("#tip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= SIZES["phone"][0]
        assert box["y"] >= 0


def test_keyboard_walks_through_a_chart(visit):
    shown = visit()
    tip = shown.locator("#tip")
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.textContent") == "Skip to the report"
    chart = shown.locator("#front svg[data-marks]:visible")
    assert chart.locator("[tabindex='0']").count() == 1
    chart.locator("[tabindex='0']").focus()
    assert tip.inner_text().startswith("Point 1")
    shown.keyboard.press("ArrowRight")
    assert tip.inner_text().startswith("Point 2")
    assert shown.locator(".pane > figure:visible").get_attribute("data-for") == "point-1"
    shown.keyboard.press("Escape")
    assert not tip.is_visible()
    heat = shown.locator("#scores figure .on-wide svg[data-marks]")
    heat.locator("[tabindex='0']").focus()
    first = tip.inner_text()
    assert first.startswith("layer 0, gqa_4 + mlp_768")
    shown.keyboard.press("ArrowDown")
    assert tip.inner_text().startswith("layer 1, gqa_4 + mlp_768")
    shown.keyboard.press("ArrowRight")
    assert tip.inner_text().startswith("layer 1, gqa_4 + mlp_576")
    assert heat.locator("[tabindex='0']").count() == 1


def test_tap_on_a_phone(visit):
    shown = visit("phone", has_touch=True, is_mobile=True)
    shown.locator("#front svg:visible .mark[data-shows=parent]").tap()
    assert shown.locator("#tip").inner_text().startswith("The parent")
    assert shown.locator(".pane > figure:visible").get_attribute("data-for") == "parent"


def test_theme_button_turns_the_page(visit):
    shown = visit(scheme="light")
    button = shown.get_by_role("button", name="Switch between light and dark")
    assert button.inner_text() == "Dark"
    before = background(shown)
    button.click()
    assert background(shown) != before
    assert button.inner_text() == "Light"
    button.click()
    assert background(shown) == before


def test_without_script_all_is_there(visit):
    shown = visit(java_script_enabled=False)
    assert shown.locator("#theme").is_hidden()
    assert shown.locator("main .chart svg:visible").count() >= 10
    assert shown.locator(".pane > figure:visible").count() == 1
    shown.get_by_text("All points as a table").click()
    assert shown.get_by_role("region", name="Points of the front").is_visible()


def test_paper_is_light_whole_and_without_a_menu(visit):
    shown = visit("phone", "dark")
    shown.emulate_media(media="print", color_scheme="dark")
    assert background(shown) == "rgb(255, 255, 255)"
    assert shown.locator("nav").is_hidden()
    assert shown.locator(".on-narrow:visible").count() == 0
    assert len(shown.pdf()) > 50_000
