"""curves.json as tables."""

from typing import Any

from utils.formatting import interval, markdown_table

SHOWN = {  # heads of the tables
    "AUROC": "auroc",
    "macro F1": "macro_f1",
    "false alarms": "false_alarm_rate",
    "missed": "miss_rate",
}
NOTES = """\
Test split: {test[all]} prompts, {test[harmful]} harmful. Percent, with 95 % bootstrap intervals
over prompts; of several draws the mean and in brackets the lowest and highest. Each fit chooses its
threshold for macro F1 on validation, {valid[all]} prompts. C {c:g} where it is not what changes."""
CLASSES_NOTE = """\
Training has the benign prompts and the classes up to a line's; valid and test have all. "Harmful"
are the prompts without a category."""
NEW_NOTE = """\
Training never saw this class; its examples come from validation. With or without them, no
validation prompt of the class is among those that choose the threshold. "Named": share of the
class's test prompts whose likeliest harmful class it is."""


def _cells(point: dict[str, Any], heads: dict[str, str] = SHOWN) -> dict[str, str]:
    return {head: interval(point[name]) for head, name in heads.items()}


def as_markdown(result: dict[str, Any]) -> str:
    """Formats curves.json."""
    layers = [{"layer": str(one["layer"])} | _cells(one["test"]) for one in result["layers"]]
    on_valid = {f"{head}, valid": SHOWN[head] for head in ("AUROC", "macro F1")}
    strengths = [
        {"C": f"{one['c']:g}", "layers that speak": str(len(one["layers"]))}
        | _cells(one["test"])
        | _cells(one["valid"], on_valid)
        for one in result["strengths"]
    ]
    counts = [
        {"prompts of a class": str(one["per_class"] or "all"), "draws": str(one["draws"])}
        | _cells(one)
        for one in result["counts"]
    ]
    classes = [
        {"added": one["added"], "its prompts": str(one["prompts"])} | _cells(one)
        for one in result["classes"]
    ]
    blocks = ["# Curves of the moderator", NOTES.format(**result["prompts"], c=result["c"])]
    for title, rows in (
        ("Each layer alone", layers),
        ("Strength of the penalty", strengths),
        ("Training prompts of each class", counts),
    ):
        if rows:
            blocks += [f"## {title}", markdown_table(rows)]
    blocks += ["## Classes added one at a time", CLASSES_NOTE, markdown_table(classes)]
    return "\n\n".join([*blocks, *_new_class(result["new_class"])]) + "\n"


def _new_class(new: dict[str, Any]) -> list[str]:
    title = f"## A class that training never saw: {new['name']}"
    if new["left_out"]:
        return [title, f"Left out: {new['left_out']}."]
    heads = {"recall": "recall", "false alarms": "false_alarms", "named": "named"}
    rows = [
        {"examples": str(one["examples"]), "draws": str(one["draws"])} | _cells(one, heads)
        for one in new["points"]
    ]
    return [title, NEW_NOTE, markdown_table(rows)]
