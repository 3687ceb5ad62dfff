"""Facts about the page, in a real Chromium: it draws, compares, works by keyboard and on a phone."""

import base64

import pytest
from debian import program
from playwright.sync_api import expect, sync_playwright
from serving_world import Server, bundle_with_reference

from mlx_tasks.models.bundle import read_bundle, write_bundle
from mlx_tasks.models.levels import Level

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
LEVELS = {"fast": Level("ddim", (700,)), "best": Level("dpmpp_2m", (999, 800, 500, 200))}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = bundle_with_reference(tmp_path_factory.mktemp("page") / "digits")
    bundle = read_bundle(folder)
    from dataclasses import replace

    write_bundle(folder, bundle.model, bundle.schedule, replace(bundle.sampler, levels=LEVELS))
    running = Server("--bundle", str(folder))
    running.wait()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser():
    path = program("chromium", "chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, server, request):
    size = getattr(request, "param", {"width": 1200, "height": 900})
    opened = browser.new_page(viewport=size)
    complaints = []
    opened.on("console", lambda told: complaints.append(told.text) if told.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(server.url)
    expect(opened.locator("#serving")).to_contain_text("serves", timeout=30_000)
    opened.complaints = complaints
    yield opened
    opened.close()


def wait_for_images(page, where):
    """Return once images are there.  Raises: AssertionError with the page's words where they are refused."""
    page.wait_for_selector(f"{where} img, #message:not([hidden])", timeout=60_000)
    assert page.is_hidden("#message"), page.inner_text("#message")


def shown(page, where):
    return page.locator(f"{where} img").evaluate_all("all => all.map(one => one.src.split(',')[1])")


def test_it_draws_what_the_route_draws(page, server):
    page.select_option("#label", "two")
    page.fill("#seed", "40")
    page.fill("#n", "3")
    page.click("#draw")
    wait_for_images(page, "#single")
    expected = [one["b64_json"] for one in server.draw(**{"class": "two", "n": 3, "seed": 40}).json()["data"]]
    assert shown(page, "#single") == expected
    assert "2 evaluations" in page.inner_text("#single .timing") and "ms drawn" in page.inner_text("#single .timing")
    page.click("summary")
    assert len(shown(page, "#strips")) == 2 and "σ" in page.inner_text("#strips .strip")
    assert page.locator("#single img").first.get_attribute("alt") == "two, seed 40"
    assert page.complaints == []


def test_two_schedules_from_the_same_seeds_lie_over_each_other(page, server):
    page.check("#compare")
    page.fill("#n", "2")
    page.select_option("#side-a .quality", "fast")
    page.select_option("#side-b .quality", "steps")
    page.fill("#side-b .steps", "9")
    page.select_option("#side-b .solver", "unipc_2")
    page.fill("#side-b .guidance", "2")
    page.click("#draw")
    wait_for_images(page, "#versus .over")
    label = page.input_value("#label")
    a = server.draw(**{"class": label, "n": 2, "seed": 1, "quality": "fast"}).json()["data"]
    b = server.draw(
        **{"class": label, "n": 2, "seed": 1, "steps": 9, "solver": "unipc_2", "grid": "log_snr", "guidance": 2}
    ).json()["data"]
    assert shown(page, "#versus .under") == [one["b64_json"] for one in a]
    assert shown(page, "#versus .over") == [one["b64_json"] for one in b]
    assert "1 evaluations" in page.inner_text("#versus .timing") and "18 evaluations" in page.inner_text(
        "#versus .timing"
    )
    clip = "getComputedStyle(document.querySelector('.over img')).clipPath"
    assert "50%" in page.evaluate(clip)
    page.focus("#divide")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert "60%" in page.evaluate(clip)
    assert page.complaints == []


def test_the_keyboard_is_enough(page):
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "seed":
            break
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    wait_for_images(page, "#single")
    assert page.input_value("#seed") == "2" and "seed 2" in page.inner_text("#single figcaption >> nth=0")


def test_what_cannot_be_drawn_is_said_and_the_form_stays(page):
    page.fill("#prompt", "a zebra")
    page.click("#draw")
    page.wait_for_selector("#message:not([hidden])")
    assert "zero, one, two" in page.inner_text("#message")
    page.fill("#prompt", "a one")
    page.click("#draw")
    wait_for_images(page, "#single")
    assert page.is_hidden("#message") and page.inner_text("#draw") == "Draw"


@pytest.mark.parametrize("page", [{"width": 360, "height": 740}], indirect=True)
def test_a_phone_is_wide_enough(page):
    page.check("#compare")
    page.click("#draw")
    wait_for_images(page, "#versus .over")
    page.click("summary")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = page.locator("button, select:visible, input:visible").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect()).filter(box => box.width).map(box => [box.left, box.right])"
    )
    assert boxes and all(left >= 0 and right <= 360 for left, right in boxes)


def test_every_control_has_a_name(page):
    page.check("#compare")
    page.select_option("#side-a .quality", "steps")
    nameless = page.evaluate(
        "[...document.querySelectorAll('input, select')].filter(one => !one.labels.length).map(one => one.outerHTML)"
    )
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_in_light_and_dark(browser, server, scheme):
    """WCAG's contrast of at least 4.5 for the quiet text, which is the faintest."""
    opened = browser.new_page(color_scheme=scheme)
    opened.goto(server.url)
    colours = opened.evaluate(
        """() => {
            const canvas = document.createElement('canvas').getContext('2d');
            const rgb = (colour) => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                                      return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3); };
            return [rgb(getComputedStyle(document.querySelector('.hint')).color),
                    rgb(getComputedStyle(document.body).backgroundColor)];
        }"""
    )
    assert contrast(*colours) >= 4.5
    opened.close()


def contrast(one, other):
    def luminance(colour):
        parts = [c / 255 for c in colour]
        r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_pictures_are_pngs(page):
    page.click("#draw")
    wait_for_images(page, "#single")
    assert base64.b64decode(shown(page, "#single")[0]).startswith(b"\x89PNG")
