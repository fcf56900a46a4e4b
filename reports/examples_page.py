"""Responses to look at, each token coloured by its score: python -m reports examples TEST_DIR

One HTML file that loads nothing. Texts of a corpus are hostile input: each one is escaped, and the
page's security policy runs no script and applies no style but the template's own, by their hashes.
"""

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from evaluation.decisions import MAX_K, MISSED, THETAS, Outcome, delay_k, reaches, select_partial
from evaluation.metrics import point_metrics
from evaluation.predictions import FILE, METRICS, Predictions, load_predictions
from reports.options import ExamplesConfig
from utils.files import InputError, read_json, refuse_file, write_bytes
from utils.formatting import percent, threshold

TEMPLATE = Path(__file__).with_suffix(".html")
STEPS = 10  # of the colour scale, classes s0 … s9
NO_TEXT = "\N{REPLACEMENT CHARACTER}"  # tokens that end within a character, and nothing after them

# by 2 × label + flagged
OUTCOMES = ("right rejection", "false alarm", "miss", "hit")
FILTERS = (3, 2, 1, 0)  # the order of the buttons


def outcome_codes(outcome: Outcome) -> np.ndarray:
    """Returns the place of each response's outcome in `OUTCOMES`, int [N]."""
    return 2 * (outcome.label == 1) + outcome.flagged


def choose(codes: np.ndarray, count: int, seed: int) -> list[int]:
    """Chooses responses to show, as many of each outcome as there are enough.

    Args:
        codes: int [N], outcomes as in `OUTCOMES`.
        count: How many to choose, if there are so many.
        seed: Of the choice; with one seed, a larger count adds responses to those of a smaller.

    Returns:
        Indices, the benign responses first, each half in the split's order.
    """
    shuffled = np.random.default_rng(seed).permutation(len(codes))
    rank = np.empty(len(codes), dtype=int)  # of a response among those of its outcome
    for code in range(len(OUTCOMES)):
        members = shuffled[codes[shuffled] == code]
        rank[members] = np.arange(len(members))
    chosen = np.lexsort((-codes, rank))[:count]  # the first of each outcome, the second of each, …
    return sorted(chosen.tolist(), key=lambda index: (codes[index] // 2, index))


def page(
    test: Predictions,
    chosen: Sequence[int],
    method: str,
    theta: float,
    k: int,
    chosen_on: str,
) -> str:
    """Returns the HTML page.

    Args:
        test: N responses with token scores.
        chosen: Indices of those to show, in this order, the benign before the harmful.
        method: Name of the detector.
        theta: Threshold of a token's score.
        k: Tokens at or above it that stop a response.
        chosen_on: Where θ and k come from, a few words.
    """
    outcome = test.partial(theta, k)
    codes, values = outcome_codes(outcome), point_metrics(outcome)
    counts = np.bincount(codes[list(chosen)], minlength=len(OUTCOMES))
    summary = {
        "θ, k": (f"{threshold(theta)}, {k}", chosen_on),
        "responses": (str(len(chosen)), f"of {len(test)} in the test split"),
        "macro F1": (_share(values["macro_f1"]), "on the whole test split"),
        "false alarms": (_share(values["false_alarm_rate"]), "of its benign responses"),
    }
    buttons = [("all", "all", len(chosen))]
    buttons += [(_slug(OUTCOMES[code]), OUTCOMES[code], int(counts[code])) for code in FILTERS]
    template = TEMPLATE.read_text(encoding="utf-8")
    return Template(template).substitute(
        style_hash=_hash(template, "style"),
        script_hash=_hash(template, "script"),
        title=f"Examples: {escape(method)}",
        theta=threshold(theta),
        summary="\n".join(
            f"<div><dt>{name}</dt><dd>{escape(value)} <small>{escape(note)}</small></dd></div>"
            for name, (value, note) in summary.items()
        ),
        scale="".join(f'<li class="s{step}">{step / STEPS:.1f}</li>' for step in range(STEPS)),
        filters="\n".join(
            f'<button type="button" data-filter="{slug}" aria-pressed="{str(slug == "all").lower()}'
            f'">{name} {number}</button>'
            for slug, name, number in buttons
        ),
        sections=_section(
            "Benign responses",
            "A stop is a false alarm.",
            [_article(test, index, codes[index], theta, k) for index in chosen if codes[index] < 2],
        )
        + _section(
            "Harmful responses",
            "Their text is blurred until you click it or its button.",
            [_article(test, index, codes[index], theta, k) for index in chosen if codes[index] > 1],
        ),
    )


def _hash(template: str, tag: str) -> str:
    """Returns what a Content-Security-Policy calls the template's one <style> or <script>."""
    content = re.search(f"<{tag}>(.*?)</{tag}>", template, flags=re.DOTALL).group(1)
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _share(value: float, digits: int = 1) -> str:
    return f"{percent(None if math.isnan(value) else value, digits)}\N{NO-BREAK SPACE}%"


def _slug(name: str) -> str:
    return name.replace(" ", "-")


def _section(title: str, note: str, articles: list[str]) -> str:
    if not articles:
        return ""
    return "\n".join(
        [f'<section>\n<h2>{title}</h2>\n<p class="note">{note}</p>', *articles, "</section>\n"]
    )


def _article(test: Predictions, index: int, code: int, theta: float, k: int) -> str:
    """Returns one response: what became of it, its tokens, and where it was stopped."""
    pieces, probs = test.pieces[index], test.token_probs[index]
    over = reaches(probs, theta)  # (T,)
    stop, harmful, tokens = delay_k(probs, theta, k), code > 1, len(probs)
    place = f"token {stop + 1} of {tokens}, {_share((stop + 1) / tokens, 0)}"
    veil = ' aria-hidden="true" inert' if harmful else ""

    def run(name: str, start: int, end: int) -> str:
        spans = _spans(pieces, probs, over, start, end, stop)
        return f'<div class="run {name}" dir="auto"{veil}>{spans}</div>'

    if stop == MISSED:
        verdict = f"not stopped: {over.sum()} of {tokens} tokens at or above θ, {k} stop it"
        text = run("shown", 0, tokens)
    else:
        verdict = f"stopped at {place}"
        text = run("shown", 0, stop + 1) + f'<p class="stop">stopped here, {place}</p>'
        text += run("rest", stop + 1, tokens) if stop + 1 < tokens else ""
    button = (
        f'<button type="button" class="veil" aria-expanded="false" aria-controls="text{index}"'
        f' aria-describedby="name{index}" hidden>Show harmful text</button>\n'
    )
    return (
        f'<article data-outcome="{_slug(OUTCOMES[code])}" aria-labelledby="name{index}">\n'
        "<header>\n"
        f'<h3 id="name{index}"><span class="badge">{OUTCOMES[code]}</span>'
        f" <bdi>{escape(test.ids[index])}</bdi></h3>\n"
        f'<p class="verdict">{"harmful" if harmful else "benign"}, {verdict}</p>\n'
        f"{button if harmful else ''}</header>\n"
        f'<div class="response" id="text{index}">{text}</div>\n</article>'
    )


def _spans(
    pieces: list[str], probs: np.ndarray, over: np.ndarray, start: int, end: int, stop: int
) -> str:
    """Returns tokens start … end - 1; those without text of their own join the next that has it.

    Args:
        pieces: [T] str.
        probs: float [T].
        over: bool [T], at or above θ.
        start: First token.
        end: One after the last.
        stop: The token at which the response was stopped.
    """
    counts, spans, first = np.cumsum(over), [], start
    for token in range(start, end):
        if not pieces[token] and token + 1 < end:
            continue
        group, text = slice(first, token + 1), pieces[token]
        classes = [f"s{min(int(probs[group].max() * STEPS), STEPS - 1)}"]
        classes += ["over"] if over[group].any() else []
        classes += ["last"] if token == stop else []
        classes += ["newline"] if "\n" in text and text.isspace() else []
        number = f"token {token + 1}" if first == token else f"tokens {first + 1} to {token + 1}"
        score = ", ".join(f"{prob:.3f}" for prob in probs[group])
        spans.append(
            f'<span class="{" ".join(classes)}" title="{number}, score {score},'
            f' {counts[token]} at or above θ so far">{escape(text or NO_TEXT)}</span>'
        )
        first = token + 1
    return "".join(spans)


def main(config: ExamplesConfig) -> None:
    """Writes the page.

    Raises:
        InputError: The folder is no test's, or its test was of full detection alone.
    """
    folder = Path(config.test_dir)
    output = Path(config.output or folder / "examples.html")
    refuse_file(output, config.overwrite)
    result = read_json(folder / METRICS)
    if not isinstance(result, dict) or not isinstance(result.get("method"), str):
        raise InputError(f"{folder / METRICS}: field 'method' is missing")
    splits = load_predictions(folder / FILE)
    valid, test = splits["valid"], splits["test"]
    if test.token_probs is None or valid.token_probs is None:
        raise InputError(
            f"{folder / FILE}: array 'test_token_probs' is missing: full detection alone stops no"
            " stream; name the folder of a partial-detection test"
        )
    if not len(test):
        raise InputError(f"{folder / FILE}: the test split is empty")
    theta, k, chosen_on = config.theta, config.k, "given"
    if theta is None:
        theta, k = select_partial(valid.token_probs, valid.label, THETAS, MAX_K)
        chosen_on = "chosen on validation"
    chosen = choose(outcome_codes(test.partial(theta, k)), config.count, config.seed)
    text = page(test, chosen, result["method"], theta, k, chosen_on)
    write_bytes(output, text.encode())
    print(f"{len(chosen)} of {len(test)} responses, θ {threshold(theta)}, k {k}: {output}")
