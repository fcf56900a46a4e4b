"""Responses to look at, each token coloured by its score: python -m reports examples TEST_DIR

One HTML file that loads nothing. Texts of a corpus are hostile input: each one is escaped, and the
page's security policy runs no script and applies no style but the template's own, by their hashes.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluation.decisions import MISSED, Outcome, delay_k, reaches
from evaluation.metrics import point_metrics
from evaluation.predictions import Predictions
from evaluation.runs import read_run
from reports.options import ExamplesConfig
from utils.files import refuse_file, write_bytes
from utils.formatting import percent, threshold

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
)
TEMPLATES.filters["slug"] = lambda name: name.replace(" ", "-")
STEPS = 10  # of the colour scale, classes s0 … s9
NO_TEXT = "\N{REPLACEMENT CHARACTER}"  # tokens that end within a character, and nothing after them
OUTCOMES = ("right rejection", "false alarm", "miss", "hit")  # by 2 × label + flagged


def outcome_codes(outcome: Outcome) -> np.ndarray:
    """Returns the place of each response's outcome in `OUTCOMES`, int [N]."""
    return 2 * (outcome.label == 1) + outcome.flagged


def choose(codes: np.ndarray, count: int, seed: int) -> list[int]:
    """Chooses responses to show, as many of each outcome as far as there are enough.

    With one seed, a larger count adds responses to those of a smaller.

    Args:
        codes: int [N], outcomes as in `OUTCOMES`.
        count: How many to choose, if there are so many.
        seed: Of the choice.

    Returns:
        Indices, the benign responses first, each half in the split's order.
    """
    shuffled = np.random.default_rng(seed).permutation(len(codes))
    responses = pd.DataFrame({"outcome": codes[shuffled]}, index=shuffled)
    responses["rank"] = responses.groupby("outcome").cumcount()
    # the first of each outcome, the second of each, …
    ranked = responses.sort_values(["rank", "outcome"], ascending=[True, False])
    chosen = ranked.index[:count].tolist()
    return sorted(chosen, key=lambda index: (codes[index] // 2, index))


def page(
    test: Predictions, chosen: Sequence[int], method: str, theta: float, k: int, chosen_on: str
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
    template = TEMPLATES.get_template("examples_page.html")
    source = Path(template.filename).read_text(encoding="utf-8")
    return template.render(
        style_hash=_hash(source, "style"),
        script_hash=_hash(source, "script"),
        method=method,
        theta=threshold(theta),
        steps=STEPS,
        summary=[
            ("θ, k", f"{threshold(theta)}, {k}", chosen_on),
            ("responses", len(chosen), f"of {len(test)} in the test split"),
            ("macro F1", _share(values["macro_f1"]), "on the whole test split"),
            ("false alarms", _share(values["false_alarm_rate"]), "of its benign responses"),
        ],
        filters=[("all", len(chosen)), *zip(OUTCOMES[::-1], counts[::-1], strict=True)],
        articles=[_article(test, index, codes[index], theta, k) for index in chosen],
    )


def _hash(template: str, tag: str) -> str:
    """Returns what a Content-Security-Policy calls the template's one <style> or <script>."""
    content = re.search(f"<{tag}>(.*?)</{tag}>", template, flags=re.DOTALL).group(1)
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _share(value: float, digits: int = 1) -> str:
    return f"{percent(value, digits)}\N{NO-BREAK SPACE}%"


def _article(test: Predictions, index: int, code: int, theta: float, k: int) -> dict[str, Any]:
    """Returns what the page says of one response: what became of it, its tokens, the stop."""
    probs, pieces = test.token_probs[index], test.pieces[index]  # (T,)
    over, stop = reaches(probs, theta), delay_k(probs, theta, k)
    tokens, harmful = len(probs), bool(code > 1)
    if stop == MISSED:
        place, end = None, tokens
        verdict = f"not stopped: {over.sum()} of {tokens} tokens at or above θ, {k} stop it"
    else:
        place, end = f"token {stop + 1} of {tokens}, {_share((stop + 1) / tokens, 0)}", stop + 1
        verdict = f"stopped at {place}"
    return {
        "index": index,
        "id": test.ids[index],
        "outcome": OUTCOMES[code],
        "harmful": harmful,
        "verdict": f"{'harmful' if harmful else 'benign'}, {verdict}",
        "stop": place,
        "shown": _spans(pieces, probs, over, range(end), stop),
        "rest": _spans(pieces, probs, over, range(end, tokens), stop),
    }


def _spans(
    pieces: list[str], probs: np.ndarray, over: np.ndarray, tokens: range, stop: int
) -> list[dict[str, str]]:
    """Returns classes, title and text of each span; a token without text joins the next with it."""
    counts, spans, first = np.cumsum(over), [], tokens.start
    for token in tokens:
        if not pieces[token] and token != tokens[-1]:
            continue
        group, text = slice(first, token + 1), pieces[token]
        classes = [f"s{min(int(probs[group].max() * STEPS), STEPS - 1)}"]
        classes += ["over"] if over[group].any() else []
        classes += ["last"] if token == stop else []
        classes += ["newline"] if "\n" in text and text.isspace() else []
        number = f"token {token + 1}" if first == token else f"tokens {first + 1} to {token + 1}"
        score = ", ".join(f"{prob:.3f}" for prob in probs[group])
        title = f"{number}, score {score}, {counts[token]} at or above θ so far"
        spans.append({"classes": " ".join(classes), "title": title, "text": text or NO_TEXT})
        first = token + 1
    return spans


def main(config: ExamplesConfig) -> None:
    """Writes the page.

    Raises:
        InputError: The folder is no test's, or its test was of full detection alone.
    """
    folder = Path(config.test_dir)
    output = Path(config.output or folder / "examples.html")
    refuse_file(output, config.overwrite)
    run = read_run(folder, partial=True)
    test, theta, k, chosen_on = run.test, config.theta, config.k, "given"
    if theta is None:
        point = run.operating_points()["partial"]
        theta, k = point.theta, point.k
        chosen_on = "given" if point.chosen_on == "settings" else "chosen on validation"
    chosen = choose(outcome_codes(test.partial(theta, k)), config.count, config.seed)
    text = page(test, chosen, run.display_name, theta, k, chosen_on)
    write_bytes(output, text.encode())
    print(f"{len(chosen)} of {len(test)} responses, θ {threshold(theta)}, k {k}: {output}")
