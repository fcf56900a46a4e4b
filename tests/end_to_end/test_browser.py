"""The page of examples in a real browser, headless Chromium: what one sees, clicks and cannot read.

.ci/run installs Chromium; under CI a missing one fails the tests.
"""

import json

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from reports.examples_page import page
from tests.browsing import CONTRASTS
from tests.reports.test_examples_page import HOSTILE, made_split
from utils.files import write_bytes

SECRET = "unspeakable"  # stands for harmful text


def six() -> tuple[list, list[str]]:
    """Two right rejections, a false alarm, two hits and a miss, at θ 0.5 and k 2."""
    words = ["The", " first", " line.", "\n", "The", " second", " line."]
    harmful = ["The", f" {SECRET}", " line.", "\n", "And", f" {SECRET}", " more."]
    calm, alarmed = [0.1] * 7, [0.1, 0.7, 0.2, 0.1, 0.9, 0.3, 0.8]
    rows = [(0, words, calm), (0, words, alarmed), (1, harmful, alarmed)]
    return rows + [(1, harmful, calm), (0, words, calm), (1, harmful, alarmed)]


@pytest.fixture()
def show(browser, tmp_path):
    """Opens a page of the given responses, the benign before the harmful."""

    def open_page(*rows, theta: float = 0.5, k: int = 2, method: str = "SCM", ids=()) -> str:
        split = made_split(*(rows or six()), ids=ids)
        chosen = sorted(range(len(split)), key=lambda index: split.label[index])
        text = page(split, chosen, method, theta, k, "given")
        write_bytes(tmp_path / "page.html", text.encode())
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        media(browser)
        browser.get_log("browser"), browser.get_log("performance")  # of the page before
        browser.get(f"file://{tmp_path}/page.html")
        return text

    return open_page


def media(browser, kind: str = "screen", scheme: str = "light") -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": kind, "features": [feature]})


def button(browser, text: str) -> WebElement:
    """Returns the first visible button whose text begins so."""
    found = [one for one in browser.find_elements(By.TAG_NAME, "button") if one.is_displayed()]
    return next(one for one in found if one.text.startswith(text))


def cards(browser) -> list[str]:
    """Returns the outcomes of the responses to be seen."""
    found = browser.find_elements(By.TAG_NAME, "article")
    return [one.get_attribute("data-outcome") for one in found if one.is_displayed()]


def blurs(browser) -> list[bool]:
    """Tells of every run of harmful text whether it is blurred."""
    runs = browser.find_elements(By.CSS_SELECTOR, "section:last-of-type .run")
    return [one.value_of_css_property("filter") != "none" for one in runs]


def spoken(browser) -> str:
    """Returns what a screen reader is told."""
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    return " ".join(str(node.get("name", {}).get("value", "")) for node in nodes)


def copied(browser) -> str:
    """Returns what "select all" would copy."""
    return browser.execute_script(
        "document.execCommand('selectAll'); const text = getSelection().toString();"
        "getSelection().removeAllRanges(); return text"
    )


def requests(browser) -> list[str]:
    """Returns the addresses that were asked for since the page was opened.

    What the browser's own pages ask for is left out: a slow machine loads its start page late.
    """
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    return [one["request"]["url"] for one in sent if not one["documentURL"].startswith("chrome://")]


def test_it_loads_alone_and_without_complaint(browser, show, tmp_path):
    show()
    button(browser, "Show all").click()
    assert requests(browser) == [f"file://{tmp_path}/page.html"]
    assert browser.get_log("browser") == []
    assert browser.title == "Examples: SCM"
    text = browser.find_element(By.TAG_NAME, "dl").text
    assert "0.5, 2" in text and "6\nof 6 in the test split" in text
    assert "33.3 %\nof its benign" in text and "66.7 %\non the whole" in text  # 2 of 3 both ways


def test_filters_show_what_they_count(browser, show):
    show()
    benign, harmful = ["right-rejection", "false-alarm", "right-rejection"], ["hit", "miss", "hit"]
    assert cards(browser) == benign + harmful
    groups = {"hit": 2, "miss": 1, "false alarm": 1, "right rejection": 2}
    for name, count in groups.items():
        button(browser, f"{name} {count}").click()
        assert cards(browser) == [name.replace(" ", "-")] * count
        pressed = browser.find_elements(By.CSS_SELECTOR, "[aria-pressed=true]")
        assert [one.text for one in pressed] == [f"{name} {count}"]
        headings = [one.text for one in browser.find_elements(By.TAG_NAME, "h2") if one.text]
        assert headings == [f"{'Harmful' if name in ('hit', 'miss') else 'Benign'} responses"]
    button(browser, "all 6").click()
    assert cards(browser) == benign + harmful


def test_harmful_text_is_hidden_until_asked_for(browser, show):
    show()
    assert blurs(browser) == [True] * 5  # two stopped responses of two runs, one whole
    first = browser.find_elements(By.CSS_SELECTOR, "section:first-of-type .run")
    assert {one.value_of_css_property("filter") for one in first} == {"none"}
    hidden = browser.find_element(By.CSS_SELECTOR, ".run[inert]")
    assert hidden.value_of_css_property("user-select") == "none"
    assert hidden.get_attribute("aria-hidden") == "true"
    assert SECRET not in spoken(browser) and SECRET not in copied(browser)
    assert "second" in spoken(browser) and "second" in copied(browser)
    assert not browser.execute_script(f"return window.find('{SECRET}')")

    button(browser, "Show harmful text").click()
    assert blurs(browser) == [False, False, True, True, True]
    assert SECRET in spoken(browser) and SECRET in copied(browser)
    shown = button(browser, "Hide harmful text")
    assert shown.get_attribute("aria-expanded") == "true"
    shown.click()
    assert blurs(browser) == [True] * 5
    assert SECRET not in spoken(browser) and SECRET not in copied(browser)


def test_clicking_the_text_itself_shows_it(browser, show):
    show()
    response = browser.find_element(By.CSS_SELECTOR, "[data-outcome=miss] .response")
    response.click()
    assert blurs(browser) == [False if place == 2 else True for place in range(5)]
    response.click()  # a click into text that is shown marks text, no more
    assert blurs(browser)[2] is False


def test_all_harmful_text_at_once(browser, show):
    show()
    button(browser, "Show all").click()
    assert blurs(browser) == [False] * 5
    button(browser, "Hide all").click()
    assert blurs(browser) == [True] * 5
    for _ in range(3):
        button(browser, "Show harmful text").click()
    button(browser, "Hide all").click()  # its label follows the single ones
    assert blurs(browser) == [True] * 5


def test_the_keyboard_reaches_everything(browser, show):
    show()
    seen = []

    def tab() -> str:
        browser.switch_to.active_element.send_keys(Keys.TAB)
        return browser.switch_to.active_element.text

    seen = [tab() for _ in range(6)]
    assert [text.split()[0] for text in seen] == ["all", "hit", "miss", "false", "right", "Show"]
    assert browser.switch_to.active_element.value_of_css_property("outline-style") == "solid"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert blurs(browser) == [False] * 5
    browser.switch_to.active_element.send_keys(Keys.SPACE)
    assert blurs(browser) == [True] * 5
    assert tab() == "Show harmful text"
    browser.switch_to.active_element.send_keys(Keys.SPACE)
    assert blurs(browser) == [False, False, True, True, True]
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert blurs(browser) == [True] * 5
    button(browser, "miss").send_keys(Keys.SPACE)
    assert cards(browser) == ["miss"]


def test_the_stop_is_at_its_token(browser, show):
    show()
    card = browser.find_element(By.CSS_SELECTOR, "[data-outcome=false-alarm]")
    # Harm@2 at 0.5: the scores are .1 .7 .2 .1 .9 …
    bar = card.find_element(By.CLASS_NAME, "stop")
    assert bar.text.replace("\N{NO-BREAK SPACE}", " ") == "stopped here, token 5 of 7, 71 %"
    before = card.find_elements(By.CSS_SELECTOR, ".shown span")
    after = card.find_elements(By.CSS_SELECTOR, ".rest span")
    assert [one.get_attribute("textContent") for one in before][-2:] == ["\n", "The"]
    assert [one.get_attribute("textContent") for one in after] == [" second", " line."]
    assert before[-1].value_of_css_property("outline-style") == "solid"
    assert before[-1].rect["y"] < bar.rect["y"] < after[0].rect["y"]
    struck = [
        one.find_element(By.XPATH, "..").value_of_css_property("text-decoration-line")
        for one in (before[0], after[0])
    ]
    assert struck == ["none", "line-through"]
    stopped = browser.find_elements(By.CLASS_NAME, "stop")
    assert len(stopped) == 3 and all(one.is_displayed() for one in stopped)


def test_line_breaks_are_kept_and_tokens_explain_themselves(browser, show):
    show()
    run = browser.find_element(By.CSS_SELECTOR, "[data-outcome=right-rejection] .run")
    assert run.get_attribute("innerText") == "The first line.\nThe second line."
    assert run.rect["height"] > 1.5 * 1.8 * 16  # two lines
    token = run.find_elements(By.TAG_NAME, "span")[1]
    title = "token 2, score 0.100, 0 at or above θ so far"
    assert token.get_attribute("title") == title
    token.click()
    reading = browser.find_element(By.ID, "reading")
    assert reading.is_displayed() and reading.text == title
    browser.find_element(By.TAG_NAME, "h1").click()
    assert not reading.is_displayed()


def test_hostile_data_does_nothing(browser, show, tmp_path):
    rows = [(label, HOSTILE, [0.1] + [0.9] * (len(HOSTILE) - 1)) for label in (0, 1)]
    show(*rows, ids=HOSTILE[:2], method=HOSTILE[0])
    button(browser, "Show all").click()
    for token in browser.find_elements(By.CSS_SELECTOR, ".run span"):
        token.click()
    assert browser.title == f"Examples: {HOSTILE[0]}"  # what each of them would change
    assert browser.find_elements(By.CSS_SELECTOR, "img, iframe, [onmouseover], [onerror]") == []
    assert len(browser.find_elements(By.TAG_NAME, "script")) == 1
    for response in browser.find_elements(By.CLASS_NAME, "response"):
        tokens = response.find_elements(By.CSS_SELECTOR, ".run span")
        assert [one.get_attribute("textContent") for one in tokens] == HOSTILE
    assert requests(browser) == [f"file://{tmp_path}/page.html"]
    assert browser.get_log("browser") == []


def test_the_policy_stops_what_escaping_would_let_through(browser, show, tmp_path):
    """The second lock: the same page with markup put in as if nothing had been escaped."""
    text = show()
    attack = (
        "<script>document.title='pwned'</script><img src='http://127.0.0.1:9/x'"
        " onerror=\"document.title='pwned'\"><style>h1 { display: none }</style>"
    )
    write_bytes(tmp_path / "page.html", text.replace("<main>", f"<main>{attack}").encode())
    browser.get(f"file://{tmp_path}/page.html")
    assert browser.title == "Examples: SCM"
    assert browser.find_element(By.TAG_NAME, "h1").is_displayed()
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    assert len(complaints) >= 3
    assert all("Content Security Policy" in message for message in complaints), complaints


def test_without_scripts_harmful_text_stays_hidden(browser, show, tmp_path):
    text = show()
    start, end = text.index("<script>"), text.index("</script>")
    write_bytes(tmp_path / "page.html", (text[:start] + text[end + 9 :]).encode())
    browser.get(f"file://{tmp_path}/page.html")
    assert blurs(browser) == [True] * 5
    assert SECRET not in spoken(browser) and SECRET not in copied(browser)
    assert not any(one.is_displayed() for one in browser.find_elements(By.TAG_NAME, "button"))


def test_a_small_screen_needs_no_sideways_scrolling(browser, show):
    long = ["a" * 400, " b", "c" * 90, "\n", "d"]
    rows = [(label, long, [0.9] * 5) for label in (0, 1)] + six()
    show(*rows, ids=[f"{'i' * 120}{n}" for n in range(8)], method="m" * 200, k=3)
    screen = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    button(browser, "Show all").click()
    wide = browser.execute_script(
        "return [document.documentElement.scrollWidth, innerWidth,"
        " ...[...document.querySelectorAll('body *')].map((e) => e.getBoundingClientRect().right)]"
    )
    assert wide[1] == 360 and max(wide) <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(browser, show, scheme):
    steps = [(step + 0.5) / 10 for step in range(10)]
    rows = [(label, [f"t{n}" for n in range(20)], steps * 2) for label in (0, 1)]  # stop at step 9
    show(*rows, *six(), theta=0.55, k=5)
    media(browser, scheme=scheme)
    button(browser, "Show all").click()
    contrasts = browser.execute_script(CONTRASTS)
    assert len(contrasts) > 60
    assert min(contrasts)[0] >= 4.5, min(contrasts)
    page_color = browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    assert ("19, 18, 17" in page_color) == (scheme == "dark")


def test_print_leaves_out_hidden_text_and_controls(browser, show):
    show()
    button(browser, "Show harmful text").click()
    media(browser, "print", "dark")
    assert not any(one.is_displayed() for one in browser.find_elements(By.TAG_NAME, "button"))
    runs = browser.find_elements(By.CSS_SELECTOR, "section:last-of-type .run")
    assert [one.is_displayed() for one in runs] == [True, True, False, False, False]
    body = browser.find_element(By.TAG_NAME, "body")
    assert "255, 255, 255" in body.value_of_css_property("background-color")
    assert "28, 27, 26" in body.value_of_css_property("color")
