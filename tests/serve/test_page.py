"""The page in a real browser: it predicts, runs nothing that a text holds, asks for the token, stays at home."""

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
from danlu.serve.page import page, page_policy
from danlu.serve.server import Address, Server, run

ATTACK = "<script>document.title='executed'</script><img src=x onerror=\"document.title='executed'\">"
TOKEN = "a-token-of-some-length"


def test_the_page_holds_nothing_from_elsewhere_and_is_named_by_its_hashes(make_service, classifier, request_):
    reply = request_(make_service(classifier), "/", method="GET")
    assert reply.status == 200 and reply.headers["content-type"].startswith("text/html")
    text, policy = reply.body.decode(), reply.headers["content-security-policy"]
    assert (text, policy) == (page(), page_policy())
    assert not re.search(r"""(src|href|action)\s*=\s*["']?(https?:)?//|@import|url\((?!data:)""", text)
    assert "/* the style of the report pages */" not in text and "--paper" in text  # their style is in
    assert "/* their script */" not in text and "danlu-theme" in text
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert policy.count("sha256-") == 3 == text.count("<script>") + text.count("<style>")
    assert not re.search(r"<[^>]+\s(on\w+|style)\s*=", text)  # the policy would not let them run


def test_the_page_puts_text_in_as_text_only():
    script = page().rsplit("<script>", 1)[-1]
    assert "textContent" in script
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|new Function|srcdoc", script)


@pytest.fixture
def opened(browser, visit) -> Iterator[Any]:
    """A maker of running services, each open in the browser; returns the address."""
    ends = []

    def open_(service: Any, width: int = 1200, theme: str = "light") -> str:
        ready, address = threading.Event(), Address("127.0.0.1", 0)
        server = Server(service, ready.set)
        thread = threading.Thread(target=run, args=(server, address))
        thread.start()
        ends.append((server, thread))
        assert ready.wait(20)
        visit(address.url, width, theme)
        return address.url

    yield open_
    browser.get("about:blank")  # lets go of its connections
    for server, thread in ends:
        server.should_exit = True
        thread.join(20)


def wait(browser: Any, script: str) -> Any:
    """What a JavaScript expression gives when it is first true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 30, 0.05).until(lambda b: b.execute_script(f"return {script}"))


def predict(browser: Any, *texts: str) -> str:
    """Fill the fields, send, and wait for an answer or a word of refusal."""
    wait(browser, "document.querySelectorAll('#fields textarea').length")
    script = "document.querySelectorAll('#fields textarea').forEach((area, i) => { area.value = arguments[0][i]; });"
    browser.execute_script(f"{script}document.getElementById('send').click()", list(texts))
    wait(browser, "!document.getElementById('send').disabled")
    return browser.execute_script("return document.getElementById('result').innerText")


@pytest.mark.parametrize(("width", "theme"), [(320, "dark"), (1200, "light")])
def test_it_predicts_and_fits_and_stays_at_home(browser, opened, make_service, tagger, width, theme):
    home = opened(make_service(tagger), width, theme)
    text = "我们在北京" * 40
    words = "".join(next(iter(tagger.predict([text])))["words"])
    shown = predict(browser, text)
    assert re.sub(r"\s", "", shown.split("As JSON")[0]) == words
    assert browser.execute_script("return document.getElementById('title').textContent") == "a-model"
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    wide, window = browser.execute_script("return [document.scrollingElement.scrollWidth, window.innerWidth]")
    assert window == width and wide <= window
    rgb = browser.execute_script("return getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).map(Number)")
    assert (sum(rgb[:3]) / 3 > 200) == (theme == "light")
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    urls = [a["request"]["url"] for a in asked if not a["documentURL"].startswith("chrome://")]
    assert {url.removeprefix(home) for url in urls if not url.startswith("data:")} == {"/", "/health", "/predict"}


def test_what_a_text_or_the_model_holds_is_shown_and_not_run(browser, opened, make_service, slow):
    slow.gate.set()
    slow.predict = lambda items, chunk: [
        {"text": t, "label": ATTACK, "confidence": 0.5, "entities": [[0, 3, ATTACK]], ATTACK: [ATTACK],
         "words": [ATTACK], "tags": [ATTACK]}
        for t in items
    ]  # fmt: skip
    service = make_service(slow)
    service.name = ATTACK
    opened(service)
    shown = predict(browser, f"𠮷野家{ATTACK}")
    assert shown.count(ATTACK) >= 5
    assert browser.find_element("tag name", "h1").text == ATTACK
    assert browser.title == f"danlu: {ATTACK}"
    assert browser.execute_script("return [document.scripts.length, document.images.length]") == [2, 0]
    marked = browser.execute_script("return document.querySelector('mark.correct').firstChild.textContent")
    assert marked == "𠮷野家"  # positions count characters
    assert browser.get_log("browser") == []


def test_it_asks_for_the_token(browser, opened, make_service, classifier):
    opened(make_service(classifier, TOKEN))
    field = "document.getElementById('token')"
    wait(browser, "!document.getElementById('secret').hidden")
    assert "classify" not in browser.page_source
    for token, expected in (("wrong-token", "not the right one"), (TOKEN, "")):
        browser.execute_script(f"{field}.value = arguments[0]; document.getElementById('send').click()", token)
        told = "document.getElementById('told').textContent"
        wait(browser, f"{told}.includes({json.dumps(expected)}) && !document.getElementById('send').disabled")
        if token == TOKEN:
            assert "%" in predict(browser, "很好")
    stored = browser.execute_script("return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    assert TOKEN not in stored


def test_a_refusal_is_told_in_its_words(browser, opened, make_service, classifier):
    opened(make_service(classifier, max_text=5))
    predict(browser, "abcdef")
    told = browser.find_element("id", "told").text
    assert told == "text has 6 characters, at most 5 are read; cut it"
    predict(browser, "")
    assert browser.find_element("id", "told").text == "Write a text first."


def test_several_fields_each_have_their_place(browser, opened, make_service, slow):
    slow.fields = ("context", "question")
    triples = [["我们", "在", "北京"], ["x", None, 3]]
    slow.predict = lambda items, chunk: [{"a": i["question"] + i["context"], "triples": triples} for i in items]
    opened(make_service(slow))
    shown = predict(browser, "where", "why")
    assert "whywhere" in shown and "我们 · 在 · 北京\nx · null · 3" in shown
    labels = browser.execute_script("return [...document.querySelectorAll('#fields label')].map(l => l.textContent)")
    assert labels == ["context", "question"]


def test_the_policy_stops_a_script_that_got_in_anyway(browser, opened, make_service, classifier):
    opened(make_service(classifier))
    wait(browser, "document.querySelectorAll('#fields textarea').length")
    browser.execute_script(
        "const s = document.createElement('div'); s.innerHTML = arguments[0]; document.body.append(s);"
        "const t = document.createElement('script'); t.textContent = \"document.title='executed'\";"
        "document.body.append(t)",
        ATTACK,
    )
    browser.execute_async_script("setTimeout(arguments[0], 200)")
    assert browser.title == "danlu: a-model"
    browser.get_log("browser")  # the refusals are reported there
