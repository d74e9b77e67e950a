"""Report pages in a real browser: no errors, no requests, no sideways scrolling, working buttons, dead scripts."""

import json
from pathlib import Path
from typing import Any

import pytest

from danlu.gallery.page import report_page, write_page

ATTACK = "<script>document.title='executed'</script><img src=x onerror=\"document.title='executed'\">"


def background(browser: Any) -> float:
    rgb = browser.execute_script("return getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).map(Number)")
    return sum(rgb[:3]) / 3


def write(folder: Path, record: dict[str, Any]) -> Path:
    path = folder / "page.html"
    write_page(report_page(record, [("Beside", "other.html")]), path)
    return path


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 768, 1200])
@pytest.mark.parametrize("fixture", ["tagger", "segmenter", "classifier", "ablation"])
def test_page_fits_is_quiet_and_stays_at_home(browser, visit, tmp_path, request, fixture, width, theme):
    visit(write(tmp_path, request.getfixturevalue(fixture)).as_uri(), width, theme)
    wide, window = browser.execute_script("return [document.scrollingElement.scrollWidth, window.innerWidth]")
    assert window == width and wide <= window
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script("return document.scrollingElement.scrollWidth <= window.innerWidth")
    assert (background(browser) > 200) == (theme == "light")
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    ours = [
        a["request"]["url"] for a in asked if not a["documentURL"].startswith("chrome://")
    ]  # not the browser's first tab
    assert ours and all(url.startswith(("file://", "data:")) for url in ours)


def test_wide_things_scroll_inside_their_own_box(browser, visit, tmp_path, tagger):
    visit(write(tmp_path, tagger).as_uri(), 360, "light")
    box = browser.execute_script(
        "const e = document.querySelector('[aria-labelledby=transitions].scroll');"
        "return [e.scrollWidth, e.clientWidth, e.tabIndex]"
    )
    assert box[0] > box[1] and box[2] == 0


def test_long_names_do_not_widen_the_page(browser, visit, tmp_path, ablation, tagger):
    for arm in ablation["arms"]:
        arm["name"] = "x" * 300 + arm["name"]
    ablation["title"] = "甲" * 200 + "y" * 400
    ablation["machine"]["cpu" * 60] = "z" * 300
    tagger["worst"] = [
        {"text": "w" * 900, "gold": [[0, 900, "PER" * 30]], "pred": [[3, 800, "LOC" * 30]], "loss": 1.0},
        {"text": "v" * 900, "gold": [[0, 900, "PER" * 30]], "pred": [], "loss": 1.0},
    ]
    tagger["command"] = "danlu " + "q" * 700
    for record in (ablation, tagger):
        for width in (360, 1200):
            visit(write(tmp_path, record).as_uri(), width, "light")
            assert browser.execute_script("return document.scrollingElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_toggle_changes_the_theme_and_remembers_it(browser, visit, tmp_path, ablation, theme):
    path = write(tmp_path, ablation)
    visit(path.as_uri(), 1200, theme)
    browser.execute_script("localStorage.clear()")
    visit(path.as_uri(), 1200, theme)
    toggle = browser.find_element("id", "theme")
    before = background(browser)
    assert toggle.is_displayed() and toggle.text == ("Dark" if theme == "light" else "Light")
    toggle.click()
    assert (background(browser) > 128) != (before > 128)
    browser.refresh()
    assert (background(browser) > 128) != (before > 128)
    browser.find_element("id", "theme").click()
    assert background(browser) == before
    browser.execute_script("localStorage.clear()")


@pytest.mark.parametrize("clipboard", [True, False])
def test_the_copy_button_copies_the_command(browser, visit, tmp_path, ablation, clipboard):
    ablation["command"] = 'danlu ablate tag --train "我的 数据.conll" --with a,b && echo <b>'
    visit(write(tmp_path, ablation).as_uri(), 1200, "light")
    if clipboard:
        browser.execute_cdp_cmd(
            "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
        )
        browser.execute_script(
            "window.got = ''; navigator.clipboard.writeText = t => { window.got = t; return Promise.resolve(); }"
        )
    else:  # as in a browser that closes the clipboard to files
        browser.execute_script(
            "navigator.clipboard.writeText = () => Promise.reject(new Error('no'));"
            "document.addEventListener('copy', () => { window.got = String(getSelection()); })"
        )
    button = browser.find_element("css selector", "button[data-copy]")
    button.click()
    browser.execute_async_script("setTimeout(arguments[0], 50)")
    assert browser.execute_script("return window.got") == ablation["command"]
    assert button.text == "Copied"


@pytest.mark.parametrize("fixture", ["tagger", "classifier", "ablation"])
def test_text_of_the_user_is_shown_and_not_run(browser, visit, tmp_path, request, fixture):
    record = request.getfixturevalue(fixture)
    record["title"] = record["command"] = ATTACK
    for example in record.get("worst", []):
        example["text"] += ATTACK
    for arm in record.get("arms", []):
        arm["name"] += ATTACK
    if "confusion" in record:
        record["confusion"]["labels"][0] = ATTACK
    visit(write(tmp_path, record).as_uri(), 1200, "light")
    assert browser.title == ATTACK
    assert browser.find_element("tag name", "h1").text == ATTACK
    assert browser.execute_script("return [document.scripts.length, document.images.length]") == [1, 0]
    assert browser.get_log("browser") == []


def test_the_policy_stops_a_script_that_got_in_anyway(browser, visit, tmp_path, ablation):
    path = write(tmp_path, ablation)
    path.write_text(
        path.read_text(encoding="utf-8").replace("</main>", "<script>document.title='executed'</script></main>"),
        encoding="utf-8",
    )
    visit(path.as_uri(), 1200, "light")
    assert browser.title == ablation["title"]
    browser.get_log("browser")  # the refusal is reported there


def test_print_is_light_without_buttons_and_opens_the_details(browser, visit, tmp_path, tagger):
    visit(write(tmp_path, tagger).as_uri(), 1200, "dark")
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    assert background(browser) == 255
    assert not browser.find_element("id", "theme").is_displayed()
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script("return document.querySelector('details').open")
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert not browser.execute_script("return document.querySelector('details').open")


def test_every_control_can_be_reached_by_keyboard_and_shows_it(browser, visit, tmp_path, tagger):
    visit(write(tmp_path, tagger).as_uri(), 1200, "light")
    from selenium.webdriver.common.keys import Keys

    reached, body = [], browser.find_element("tag name", "body")
    for _ in range(30):
        (browser.switch_to.active_element or body).send_keys(Keys.TAB)
        seen = browser.execute_script(
            "const e = document.activeElement, name = e.id || e.getAttribute('data-copy') || '';"
            "return [e.tagName, name, getComputedStyle(e).outlineStyle]"
        )
        if seen[0] == "BODY":
            break
        reached.append(seen)
    assert {"theme", "command"} <= {name for _, name, _ in reached} and "SUMMARY" in {tag for tag, _, _ in reached}
    assert all(outline != "none" for _, _, outline in reached)
