"""Results as a table for the terminal, and the paper's numbers."""

from pathlib import Path
from typing import Any

from evaluation.conformal import CAVEAT
from utils.formatting import interval, percent, threshold

PAPER = Path(__file__).with_name("paper.json")  # the paper's numbers, arXiv 2506.09996

ROWS = {
    "full": "full detection",
    "partial": "partial detection",
    "partial_paper_protocol": "partial, (θ, k) chosen on test: optimistic",
    "partial_conformal": "partial, θ calibrated for at most {target:g} % false alarms",
}


def kind_title(kind: str, target: float | None) -> str:
    """Names a kind of detection, a key of `ROWS`; target is the share θ was calibrated for."""
    return ROWS[kind].format(target=100 * (target or 0))


def format_table(result: dict[str, Any]) -> str:
    """Formats metrics.json for the terminal: one block a kind of detection, test split, percent."""
    test, of = result["responses"]["test"], result.get("of", "responses")
    lines = [
        "",
        f"{result['method']}: {test['all']} test {of} ({test['harmful']} harmful), percent,"
        " 95 % bootstrap intervals over prompts",
    ]
    for key in ROWS:
        if key not in result:
            continue
        row = result[key]
        title, values = kind_title(key, row.get("target_false_alarm")), row["test"]
        setting = f"θ {threshold(row['theta'])}" + (f", k {row['k']}" if "k" in row else "")
        came = "as given" if row["chosen_on"] == "settings" else f"chosen on {row['chosen_on']}"
        lines += ["", f"  {title}  ({setting}; {came})"]
        for name in ("benign", "harmful"):
            precision, recall, f1 = (
                percent(values[f"{name}_{part}"]["value"]) for part in ("precision", "recall", "f1")
            )
            lines.append(f"    {name:8} P {precision:>5}  R {recall:>5}  F1 {f1:>5}")
        lines.append(f"    macro F1           {interval(values['macro_f1'])}")
        lines.append(f"    false alarms       {interval(values['false_alarm_rate'])}")
        if key == "partial_conformal":
            lines.append(f"    that share is promised {CAVEAT}")
        lines.append(f"    AUROC              {interval(values['auroc'])}")
        if key != "full":
            lines.append(f"    response seen      {interval(values['mean_fraction_seen'])}")
            leaked = values["leaked_harmful_tokens"]["value"]
            mean = "–" if leaked is None else f"{leaked:.1f}"
            lines.append(f"    harmful tokens out before the stop, mean  {mean}")
    return "\n".join(lines) + "\n"
