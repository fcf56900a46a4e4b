"""The page of examples: which responses, which spans, nothing from the data as markup."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from evaluation.decisions import MAX_K, THETAS, delay_k, select_partial
from evaluation.predictions import Predictions
from reports.examples_page import OUTCOMES, choose, main, outcome_codes, page
from reports.options import ExamplesConfig
from tests.conftest import random_split
from tests.runs import write_run
from utils.files import InputError

HOSTILE = [
    "</script><img src=x onerror=\"document.title='pwned'\">",
    '" onmouseover="document.title=1" x="',
    "<script>document.title='pwned'</script>",
    "</span></div><iframe src='http://127.0.0.1:9/'></iframe><!--",
    "<style>*{background:url(http://127.0.0.1:9/x)}</style>",
    "&lt;b&gt; {{ theta }} {% raw %} {# {0}",
]


def made_split(*rows: tuple[int, list[str], list[float]], ids: list[str] = ()) -> Predictions:
    """Returns predictions of (label, pieces, token probabilities), one response a prompt."""
    probs = [np.array(row[2], dtype=np.float32) for row in rows]
    return Predictions(
        ids=list(ids) or [f"r{number}" for number in range(len(rows))],
        label=np.array([row[0] for row in rows]),
        group=np.arange(len(rows)),
        token_labels=[np.zeros(len(one), dtype=np.int8) for one in probs],
        pieces=[row[1] for row in rows],
        response_prob=np.array([one.max() for one in probs], dtype=np.float32),
        token_probs=probs,
    )


class Reader(HTMLParser):
    """Takes a page apart as a browser would."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.handlers, self.spans, self.articles = set(), [], [], []
        self.stack: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.handlers += [name for name, _ in attributes if name.startswith("on")]
        found = dict(attributes)
        if tag == "article":
            self.articles.append(found | {"text": ""})
        if "title" in found:
            self.spans.append((found["class"], found["title"], ""))
        if tag not in ("meta",):
            self.stack.append("token" if "title" in found else tag)

    def handle_endtag(self, tag):
        self.stack.pop()

    def handle_data(self, data):
        if self.stack and self.stack[-1] == "token":
            name, title, text = self.spans[-1]
            self.spans[-1] = (name, title, text + data)
            self.articles[-1]["text"] += data


def show(split: Predictions, theta: float = 0.5, k: int = 2, method: str = "SCM") -> str:
    return page(split, range(len(split)), method, theta, k, "given")


def test_the_choice_is_balanced_as_far_as_there_are_enough():
    codes = np.array([0] * 20 + [1] * 2 + [2] * 20 + [3] * 5)
    chosen = choose(codes, 20, 0)
    assert np.bincount(codes[chosen]).tolist() == [6, 2, 7, 5]
    assert np.bincount(codes[choose(codes, 4, 0)]).tolist() == [1, 1, 1, 1]
    harmful = codes[chosen] >= 2
    assert (np.diff(harmful.astype(int)) >= 0).all()  # benign first
    assert len(set(chosen)) == 20
    assert chosen == choose(codes, 20, 0) != choose(codes, 20, 1)
    assert set(chosen) < set(choose(codes, 30, 0))
    assert sorted(choose(codes, 100, 0)) == list(range(47))
    assert choose(np.array([], dtype=int), 5, 0) == []
    assert choose(np.array([3, 3]), 5, 0) == [0, 1]


def test_outcomes_have_their_names():
    split = made_split(
        (0, ["a"], [0.1]), (0, ["a"], [0.9]), (1, ["a"], [0.1]), (1, ["a"], [0.9])
    )  # fmt: skip
    names = [OUTCOMES[code] for code in outcome_codes(split.partial(0.5, 1))]
    assert names == ["right rejection", "false alarm", "miss", "hit"]
    cards = [card["data-outcome"] for card in Reader(show(split, k=1)).articles]
    assert cards == ["right-rejection", "false-alarm", "miss", "hit"]


def test_every_token_by_hand():
    split = made_split((1, ["One", " two", "\n", " three"], [0.04, 0.5, 0.95, 1.0]))
    text = show(split)
    assert Reader(text).spans == [
        ("s0", "token 1, score 0.040, 0 at or above θ so far", "One"),
        ("s5 over", "token 2, score 0.500, 1 at or above θ so far", " two"),
        ("s9 over last newline", "token 3, score 0.950, 2 at or above θ so far", "\n"),
        ("s9 over", "token 4, score 1.000, 3 at or above θ so far", " three"),
    ]
    assert '<p class="stop">stopped here, token 3 of 4, 75\N{NO-BREAK SPACE}%</p>' in text
    before, after = text.split('<p class="stop">')
    assert "three" in after.split('class="run rest"')[1] and "three" not in before
    assert "not stopped: 3 of 4 tokens at or above θ, 4 stop it" in show(split, k=4)
    assert '<p class="stop">' not in show(split, k=4)


def test_a_token_is_marked_by_the_comparison_that_stops():
    """0.9 in float32 lies below 0.9."""
    text = show(made_split((1, ["a", "b"], [0.9, 0.9])), theta=0.9)
    assert "not stopped: 0 of 2 tokens at or above θ" in text and not re.search(r'"s\d over', text)


def test_a_stop_at_the_last_token_leaves_no_rest():
    text = show(made_split((1, ["a", "b"], [0.9, 0.9])))
    assert "stopped here, token 2 of 2, 100" in text and 'class="run rest"' not in text


def test_tokens_within_a_character_join_the_next_shown_one():
    split = made_split(
        (0, ["", "", "中", "a"], [0.3, 0.9, 0.1, 0.2]),
        (0, ["a", ""], [0.1, 0.2]),  # bytes that never become a character
        (1, ["", "", "中"], [0.9, 0.9, 0.1]),  # stopped within a character
    )
    assert Reader(show(split)).spans == [
        ("s9 over", "tokens 1 to 3, score 0.300, 0.900, 0.100, 1 at or above θ so far", "中"),
        ("s2", "token 4, score 0.200, 1 at or above θ so far", "a"),
        ("s1", "token 1, score 0.100, 0 at or above θ so far", "a"),
        ("s2", "token 2, score 0.200, 0 at or above θ so far", "�"),
        ("s9 over last", "tokens 1 to 2, score 0.900, 0.900, 2 at or above θ so far", "�"),
        ("s1", "token 3, score 0.100, 2 at or above θ so far", "中"),
    ]


def test_only_harmful_text_is_veiled():
    text = show(made_split((0, ["a", "b"], [0.9, 0.9]), (1, ["a", "b", "c"], [0.9, 0.9, 0.9])))
    runs = re.findall(r'<div class="run (\w+)" dir="auto"(.*?)>', text)
    veil = ' aria-hidden="true" inert'
    assert runs == [("shown", ""), ("shown", veil), ("rest", veil)]
    assert text.count("Show harmful text</button>") == 1


def test_nothing_from_the_data_becomes_markup():
    plain = Reader(show(made_split((0, ["a", "b"], [0.9, 0.9]), (1, ["a"] * 3, [0.9] * 3))))
    split = made_split(
        (0, HOSTILE, [0.9] * len(HOSTILE)), (1, HOSTILE, [0.9] * len(HOSTILE)), ids=HOSTILE[:2]
    )
    text = show(split, method=HOSTILE[0])
    spoilt = Reader(text)
    assert spoilt.tags == plain.tags and spoilt.handlers == []
    assert [card["text"] for card in spoilt.articles] == ["".join(HOSTILE)] * 2
    assert text.count("<script") == text.count("</script") == text.count("<style") == 1


def test_the_policy_allows_the_templates_own_style_and_script_alone():
    text = show(random_split(8))
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text).group(1)
    for tag in ("style", "script"):
        content = re.search(f"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL).group(1)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    assert text.index("Content-Security-Policy") < text.index("<style>")
    assert not re.search(r"\b(src|href|style)\s*=|url\(|@import|https?:", text)


def test_head_lines_are_those_of_the_whole_split():
    split = random_split(40)
    values = split.partial(0.7, 2)
    alarms = (values.flagged & (values.label == 0)).sum() / 20
    text = page(split, [0, 1, 2], "SCM", 0.7, 2, "chosen on validation")
    assert f"{100 * alarms:.1f}\N{NO-BREAK SPACE}%" in text
    assert "3 <small>of 40 in the test split" in text
    assert "0.7, 2 <small>chosen on validation" in text
    one_class = show(made_split((0, ["a"], [0.1])), k=1)
    assert "nan" not in one_class and "–\N{NO-BREAK SPACE}%" in one_class
    assert "Harmful responses" not in one_class and "Benign responses" in one_class


@pytest.fixture()
def folder(tmp_path):
    """A test's folder, as far as the page reads it."""

    def write(partial: bool = True):
        valid, test = (random_split(60, seed, partial) for seed in range(2))
        write_run(write.path, valid=valid, test=test)
        return valid, test

    write.path = tmp_path / "scm"
    return write


def test_the_command_writes_the_page(folder, capsys):
    valid, test = folder()
    main(ExamplesConfig(str(folder.path), count=12))
    output = folder.path / "examples.html"
    text = output.read_bytes().decode("utf-8")
    theta, k = select_partial(valid.token_probs, valid.label, THETAS, MAX_K)
    assert f"12 of 60 responses, θ {theta}, k {k}: {output}" in capsys.readouterr().out
    cards = Reader(text).articles
    assert len(cards) == 12
    stopped = [delay_k(probs, theta, k) >= 0 for probs in test.token_probs]
    for card in cards:
        number = int(card["aria-labelledby"].removeprefix("name"))
        assert stopped[number] == (card["data-outcome"] in ("hit", "false-alarm"))
    with pytest.raises(InputError, match="examples.html: exists already"):
        main(ExamplesConfig(str(folder.path)))
    main(ExamplesConfig(str(folder.path), count=12, overwrite=True))
    assert output.read_bytes().decode() == text
    main(ExamplesConfig(str(folder.path), str(folder.path / "b.html"), 5, 0.6, 3, seed=7))
    other = (folder.path / "b.html").read_text(encoding="utf-8")
    assert len(Reader(other).articles) == 5 and "0.6, 3 <small>given" in other
    assert not list(folder.path.glob(".*partial"))


def test_a_folder_that_cannot_be_shown_is_named(folder):
    with pytest.raises(InputError, match=r"metrics.json: no such file"):
        main(ExamplesConfig(str(folder.path)))
    folder(partial=False)
    with pytest.raises(InputError, match=r"npz: array 'valid_token_probs' is missing: full"):
        main(ExamplesConfig(str(folder.path)))
    assert not (folder.path / "examples.html").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"theta": 0.5}, "--theta and --k: give both or neither"),
        ({"k": 2}, "--theta and --k: give both or neither"),
        ({"theta": 0.0, "k": 2}, "--theta: 0.0 is not"),
        ({"theta": float("nan"), "k": 2}, "--theta: nan is not"),
        ({"theta": 0.5, "k": 0}, "--k: 0 is below 1"),
        ({"count": 0}, "--count: 0 is below 1"),
        ({"seed": -1}, "--seed: -1 is below 0"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        ExamplesConfig("x", **options)
