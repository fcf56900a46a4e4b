"""The page in a real browser: an answer that passes, a stop, a text of one's own, the keyboard."""

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from monitor.rules import DelayK
from tests.browsing import CONTRASTS
from tests.conftest import settings_of
from tests.serve.conftest import chat

pytestmark = pytest.mark.slow
RULE = settings_of(DelayK(2), 0.6)


def start(browser) -> None:
    browser.find_element(By.ID, "go").click()


def test_an_answer_appears_and_the_counters_move(open_page, browser, stub):
    stub.pieces = lambda body: chat("Light is ", "refracted ", "in <b>drops</b>.")
    open_page()
    start(browser)
    open_page.wait(lambda: "ran through" in open_page.text("status"))
    assert open_page.text("answer") == "Light is refracted in <b>drops</b>."
    tokens = browser.find_elements(By.CSS_SELECTOR, "#answer span[title]")
    assert len(tokens) > 3 and all("score" in one.get_attribute("title") for one in tokens)
    open_page.wait(lambda: "ran through\n1" in open_page.text("counters"))
    assert not [one for one in browser.get_log("browser") if one["level"] == "SEVERE"]


def test_a_stop_is_marked_with_its_reason(open_page, browser, stub, monitor):
    monitor.settings = settings_of(DelayK(1), 1e-6)
    stub.pieces = lambda body: chat("unspeakable words ", "and more")
    open_page()
    start(browser)
    open_page.wait(lambda: "stopped: unsafe, harmful, at token 0" in open_page.text("status"))
    assert "unspeakable" not in open_page.text("answer")
    assert browser.find_element(By.CSS_SELECTOR, "#answer .stop").is_displayed()


def test_a_text_of_ones_own_stops_where_the_monitor_says(open_page, browser, monitor):
    written = "A first sentence of it 🎉, über all. And then a second, which is longer than that."
    monitor.settings = RULE
    with monitor.open("Why?") as stream:
        verdict = stream.feed(written)
        verdict = verdict if verdict.stopped else stream.close()
    open_page()
    browser.find_element(By.CSS_SELECTOR, "[value=text]").click()
    for name, value in (("prompt", "Why?"), ("text", written)):
        script = "document.getElementById(arguments[0]).value = arguments[1]"
        browser.execute_script(script, name, value)
    start(browser)
    open_page.wait(lambda: open_page.text("status").startswith(("stopped", "ran through")))
    assert verdict.stopped and f"character {verdict.stop_character})" in open_page.text("status")
    tokens = browser.find_elements(By.CSS_SELECTOR, "#answer span[title^=score]")
    shown = browser.execute_script("return arguments[0].map((t) => t.textContent).join('')", tokens)
    assert shown == written[: verdict.stop_character]


def test_the_example_fills_the_fields(open_page, browser):
    open_page()
    browser.find_element(By.ID, "example").click()
    field = browser.find_element(By.ID, "text")
    open_page.wait(lambda: field.is_displayed() and len(field.get_attribute("value")) > 100)


def test_one_can_leave(open_page, browser, stub):
    stub.delay = 0.2
    stub.pieces = lambda body: chat(*["word "] * 50)
    open_page()
    start(browser)
    open_page.wait(lambda: "word" in open_page.text("answer"))
    browser.find_element(By.ID, "end").click()
    open_page.wait(lambda: "you stopped reading" in open_page.text("status"))
    open_page.wait(lambda: stub.left == 1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_and_used_by_keyboard(open_page, browser, scheme):
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    open_page()
    poor = [found for found in browser.execute_script(CONTRASTS) if found[0] < 4.5]
    assert not poor
    reached = []
    for _ in range(9):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(browser.switch_to.active_element.get_attribute("id"))
    assert {"prompt", "go", "example", "answer"} <= set(reached)
    labels = (
        "return [...document.querySelectorAll('textarea, input')].every((i) => i.labels.length)"
    )
    assert browser.execute_script(labels)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_nothing_comes_from_elsewhere(open_page, browser):
    open_page()
    names = "return performance.getEntriesByType('resource').map((one) => one.name)"
    own = browser.current_url
    assert all(one.startswith(own) for one in browser.execute_script(names))
