"""Tables of aligned policies: values by hand, seeds, paired tests, and what is refused."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from align.measures import JUDGED, MEASURES, means
from reports.alignment import baselines, read_rows
from reports.alignment_tables import GROUPS, MEANINGS, alignment_tables, spread
from reports.options import TablesConfig
from reports.tables import main
from tests.conftest import run
from tests.reports.policies import write_policy
from tests.reports.reading import line, markdown_row
from tests.runs import write_run
from utils.files import InputError, write_json
from utils.run_record import FinishedAlready

TOKEN = {"method": "tokendpo", "annotator_model": "scm"}
HARM = "harm: SCM"


def frames(runs: Path) -> dict[str, pd.DataFrame]:
    """The CSV tables, empty cells as NaN."""
    made = alignment_tables(read_rows(runs))
    return {
        name: pd.read_csv(io.StringIO(text)) for name, text in made.items() if name.endswith("csv")
    }


def test_one_run_by_hand(tmp_path):
    values = {
        HARM: [0.2, 0.4, 0.9], "harmful: SCM": [0, 0, 1], "kl_token": [0.01, 0.02, 0.06],
        "distinct_2": [0.5, np.nan, 1.0], "false_refusal": [1, 0], "log_likelihood": [-1, -2, -4],
    }  # fmt: skip
    write_policy(tmp_path / "dpo", values)
    row = line(frames(tmp_path)["alignment.csv"], method="DPO")
    assert row[f"{HARM}_value"] == pytest.approx(0.5)
    assert row["distinct_2_value"] == pytest.approx(0.75)  # the undefined one does not count
    assert row["log_likelihood_value"] == pytest.approx(-7 / 3)
    assert np.isnan(row[f"{HARM}_std"]) and (row["runs"], row["beta"]) == (1, 0.1)
    # the same intervals as the test's own report: drawn with its seed and number of samples
    for name, mean in means({n: np.array(v, float) for n, v in values.items()}, 200, 7).items():
        for part, value in mean.items():
            assert row[f"{name}_{part}"] == pytest.approx(value), name
    text = alignment_tables(read_rows(tmp_path))["alignment.md"]
    low, high = (f"{100 * row[f'{HARM}_{part}']:.1f}" for part in ("low", "high"))
    assert markdown_row(text, "DPO")[1] == f"50.0 [{low}, {high}]"
    assert "harm, SCM ↓ |" in text and "log-likelihood of references ↑" in text
    distance = text.split("## Distance")[1].split("\n## ")[0]
    assert markdown_row(distance, "DPO")[1].startswith("0.0300 [")
    assert (
        "3 answers to risky prompts, 2 answers to benign prompts and 3 benign answers"
        in " ".join(text.split())
    )
    assert "## Differences" not in text and "nan" not in text
    assert frames(tmp_path)["alignment_paired.csv"].empty


@pytest.mark.filterwarnings("error")
def test_a_value_that_is_nowhere_defined_is_a_dash(tmp_path):
    write_policy(tmp_path / "dpo", {HARM: [0.1, 0.2], "distinct_2": [np.nan, np.nan]})
    write_policy(tmp_path / "sft", {HARM: [0.1, 0.2], "distinct_2": [1, 0.5]}, "SFT", method="sft")
    made = alignment_tables(read_rows(tmp_path))
    health = made["alignment.md"].split("## Health")[1]
    assert markdown_row(health, "DPO") == ["DPO", "–"]
    assert "nan" not in made["alignment.md"]
    found = line(frames(tmp_path)["alignment_paired.csv"], method="SFT", measure="distinct_2")
    assert np.isnan(found["difference_value"]) and np.isnan(found["p"])


def test_a_difference_is_of_the_units_that_both_rows_have(tmp_path):
    write_policy(tmp_path / "dpo", {HARM: [1, 1, 0, 0, 0, 0]})
    write_policy(tmp_path / "sft", {HARM: [1, 1, 0, 0, np.nan, np.nan]}, "SFT", method="sft")
    made = frames(tmp_path)
    assert line(made["alignment.csv"], method="SFT")[f"{HARM}_value"] == pytest.approx(0.5)
    found = line(made["alignment_paired.csv"], method="SFT", measure=HARM)
    assert found["difference_value"] == found["difference_low"] == found["difference_high"] == 0


def test_seeds_are_one_row(tmp_path):
    per_seed = {3: [0.2, 0.4, np.nan], 1: [0.5, 0.9, 0.1]}
    for seed, harm in per_seed.items():
        write_policy(tmp_path / f"{seed}", {HARM: harm}, seed=seed, record={"bootstrap": 50 * seed})
    row = line(frames(tmp_path)["alignment.csv"], method="DPO")
    assert (row["runs"], row["seeds"]) == (2, "1; 3")
    assert row[f"{HARM}_value"] == pytest.approx(
        (0.3 + 0.5) / 2
    )  # a seed counts as much as another
    assert row[f"{HARM}_std"] == pytest.approx(0.2 / np.sqrt(2))  # ddof = 1
    (read,) = read_rows(tmp_path)
    samples = read.estimates[HARM].samples
    assert len(samples) == 50  # as the first run's record says
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    assert (row[f"{HARM}_low"], row[f"{HARM}_high"]) == pytest.approx((low, high))
    text = alignment_tables([read])["alignment.md"]
    assert (
        markdown_row(text, "DPO (2 runs)")[1] == f"40.0 ± 14.1 [{100 * low:.1f}, {100 * high:.1f}]"
    )


ORDER = (  # name, training
    ("as it is", None),
    ("Another", None),
    ("SFT", {"method": "sft", "beta": 0.5}),  # of no β
    ("DPO", {}),
    ("DPO, own pairs", {"data_dir": "own"}),
    ("TokenDPO", TOKEN),
    ("TokenDPO, even", {**TOKEN, "weights": "even"}),
    ("TokenDPO, own pairs", {**TOKEN, "data_dir": "own"}),
    ("TokenDPO, soft", {**TOKEN, "soft": True}),
    ("TokenDPO, α 0.5", {**TOKEN, "alpha": 0.5}),
    ("DPO, β 0.03", {"beta": 0.03}),
    ("DPO, β 0.3", {"beta": 0.3}),
    ("TokenDPO, β 0.3", {**TOKEN, "beta": 0.3}),
    ("TokenDPO, β 3", {**TOKEN, "beta": 3}),
    ("TokenDPO, even, β 0.3", {**TOKEN, "weights": "even", "beta": 0.3}),
)


def write_all(runs: Path, values=lambda place: {HARM: [0.1, 0.2, 0.3]}) -> None:
    """Writes a run of each row, in an order of folders that is not the table's."""
    for place, (name, training) in enumerate(ORDER):
        seed = None if training is None else 1
        folder = runs / f"{99 - place}"
        write_policy(folder, values(place), name, seed, **(training or {}))


def test_rows_have_a_fixed_order(tmp_path):
    write_all(tmp_path)
    assert [row.name for row in read_rows(tmp_path)] == [name for name, _ in ORDER]


def test_what_a_row_is_compared_with(tmp_path):
    write_all(tmp_path)
    rows = read_rows(tmp_path)
    found = {row.name: [base.name for base in baselines(row, rows)] for row in rows}
    assert found == {
        "as it is": ["DPO"],
        "Another": ["DPO", "as it is"],
        "SFT": ["DPO", "as it is"],
        "DPO": ["as it is"],
        "DPO, own pairs": ["DPO", "as it is"],
        "TokenDPO": ["DPO", "as it is"],
        "TokenDPO, even": ["DPO", "as it is", "TokenDPO"],
        "TokenDPO, own pairs": ["DPO, own pairs", "as it is", "TokenDPO"],
        "TokenDPO, soft": ["DPO", "as it is", "TokenDPO"],
        "TokenDPO, α 0.5": ["DPO", "as it is", "TokenDPO"],
        "DPO, β 0.03": ["DPO", "as it is"],
        "DPO, β 0.3": ["DPO", "as it is"],
        "TokenDPO, β 0.3": ["DPO, β 0.3", "as it is"],
        "TokenDPO, β 3": ["as it is"],  # there is no DPO of that β
        "TokenDPO, even, β 0.3": ["DPO, β 0.3", "as it is", "TokenDPO, β 0.3"],
    }


def test_a_variant_alone_is_no_baseline(tmp_path):
    variants = [one for one in ORDER if one[0] in ("TokenDPO, soft", "TokenDPO, α 0.5")]
    for place, (name, training) in enumerate(variants):
        write_policy(tmp_path / f"{place}", {HARM: [0.1]}, name, **training)
    rows = read_rows(tmp_path)
    assert [baselines(row, rows) for row in rows] == [[], []]


def test_differences_are_paired_and_signed(tmp_path):
    base = np.linspace(0.3, 0.9, 40)  # units differ by far more than policies
    write_policy(tmp_path / "0", {HARM: base, "kl_answer": base}, "as it is", seed=None)
    for seed in (1, 2):
        dpo = {HARM: base - 0.1, "kl_answer": base + 2 * seed}
        write_policy(tmp_path / f"d{seed}", dpo, seed=seed)
    token = {HARM: base - 0.15 + 0.01 * np.sin(99 * base), "kl_answer": base + 3}
    write_policy(tmp_path / "t", token, "TokenDPO", **TOKEN)
    frame = frames(tmp_path)["alignment_paired.csv"]
    found = line(frame, method="TokenDPO", against="DPO", measure=HARM)
    assert found["difference_value"] == pytest.approx(-0.05, abs=0.005)
    assert -0.06 < found["difference_low"] < found["difference_high"] < -0.04  # paired: narrow
    assert found["p"] == pytest.approx(2 / 201) and found["resamples"] == 200
    distance = line(frame, method="TokenDPO", against="DPO", measure="kl_answer")
    assert distance["difference_value"] == pytest.approx(0)  # the mean of both seeds is +3
    assert distance["p"] == 1
    exact = line(frame, method="DPO", against="as it is", measure=HARM)
    ends = [exact[f"difference_{part}"] for part in ("value", "low", "high")]
    assert ends == pytest.approx([-0.1] * 3)
    mirrored = line(frame, method="as it is", against="DPO", measure=HARM)
    assert mirrored["difference_value"] == pytest.approx(0.1) and mirrored["p"] == exact["p"]
    text = alignment_tables(read_rows(tmp_path))["alignment.md"].split("## Differences")[1]
    assert markdown_row(text, "DPO", "as it is")[2] == "-10.0 [-10.0, -10.0], p 0.0100"
    assert "KL" not in text  # harm and usefulness alone; all is in the CSV file
    assert len(frame) == 2 * (1 + 1 + 2)  # measures × (as it is, DPO, TokenDPO)


def test_every_measure_has_its_place_and_meaning():
    placed = [kind for kinds in GROUPS.values() for kind in kinds]
    assert sorted(placed) == sorted([*JUDGED, *MEASURES]) == sorted(MEANINGS)


def test_cells():
    parts = {"value": 0.1234, "low": 0.1, "high": 0.2, "std": 0.01}
    assert spread(HARM, parts) == "12.3 ± 1.0 [10.0, 20.0]"
    assert spread("log_likelihood", parts) == "0.12 ± 0.01 [0.10, 0.20]"
    assert spread("refused", {**parts, "std": np.nan}, "+") == "+12.3 [+10.0, +20.0]"


def edit(name: str, **fields):
    """Returns what changes fields of a JSON file; `...` removes one."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        for field, value in fields.items():
            *places, last = field.split("__")
            inner = content
            for place in places:
                inner = inner[place]
            inner[last] = value
            if value is ...:
                del inner[last]
        write_json(folder / name, content)

    return change


def save(**arrays):
    """Returns what replaces values.npz."""
    return lambda folder: np.savez(folder / "values.npz", **arrays)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (edit("alignment.json", method=3), "alignment.json: field 'method': input should be a val"),
        (edit("alignment.json", training=...), "alignment.json: field 'training' is missing"),
        (edit("alignment.json", training__beta=...), "json: field 'training.beta' is missing"),
        (edit("alignment.json", training__seed="1"), "json: field 'training.seed': input should"),
        (edit("alignment.json", training__method="ppo"), "json: field 'training.method': input"),
        (edit("run.json", config__bootstrap=...), "run.json: field 'config.bootstrap' is missing"),
        (lambda folder: (folder / "run.json").unlink(), "run.json: no such file"),
        (lambda folder: (folder / "values.npz").unlink(), "values.npz: cannot be read"),
        (lambda folder: (folder / "values.npz").write_bytes(b""), "values.npz: cannot be read"),
        (lambda folder: (folder / "values.npz").write_bytes(b"PK"), "values.npz: cannot be read"),
        (save(words=np.array(["a"])), "values.npz: cannot be read: could not convert"),
        (save(), "values.npz: holds no measure"),
        (save(mood=np.ones(2)), "values.npz: array 'mood' is no known measure"),
        (save(**{"mood: SCM": np.ones(2)}), "values.npz: array 'mood: SCM' is no known measure"),
        (
            save(words=np.ones(2)),
            "values.npz: array 'words' is not one value for each of 'ids risk",
        ),
        (
            save(words=np.ones(2), **{"ids risky": np.array(["a"])}),
            "values.npz: array 'words' is not one value for each of 'ids risky'",
        ),
    ],
)
def test_a_spoilt_folder_is_named(tmp_path, spoil, message):
    write_policy(tmp_path / "good", {HARM: [0.1, 0.2]})
    spoil(write_policy(tmp_path / "deep" / "bad", {HARM: [0.1, 0.2]}, seed=2))
    with pytest.raises(InputError) as caught:
        read_rows(tmp_path)
    told = str(caught.value)
    assert "deep/bad/" in told and message in told and "\n" not in told


@pytest.mark.parametrize(
    "other, fault",
    [
        ({"seed": 1}, "and of the same seed"),
        ({"seed": 2, "learning_rate": 1e-4}, "but their trainings' 'learning_rate' differs"),
        ({"seed": 2, "beta": 0.2}, "but their trainings' 'beta' differs"),
        ({"seed": 2, "data_dir": "own.jsonl"}, "but their trainings' 'data_dir' differs"),
        ({"seed": None}, "differs"),
    ],
)
def test_mixtures_are_refused(tmp_path, other, fault):
    write_policy(tmp_path / "a", {HARM: [0.1, 0.2]})
    write_policy(tmp_path / "b", {HARM: [0.1, 0.2]}, **other)
    with pytest.raises(
        InputError, match=f"both are called 'DPO' .*{fault}.* another --name"
    ) as one:
        read_rows(tmp_path)
    assert str(tmp_path / "a") in str(one.value) and str(tmp_path / "b") in str(one.value)


def test_another_backbone_is_another_row(tmp_path):
    write_policy(tmp_path / "a", {HARM: [0.1, 0.2]})
    folder = write_policy(tmp_path / "b", {HARM: [0.1, 0.2]}, seed=2)
    edit("run.json", model__backbone={"folder": "elsewhere"})(folder)
    assert len(read_rows(tmp_path)) == 1  # the same one at another place
    edit("run.json", model__backbone={"folder": "llm", "model.safetensors": "f" * 64})(folder)
    with pytest.raises(InputError, match="'backbone' differs"):
        read_rows(tmp_path)


def test_two_that_were_not_trained(tmp_path):
    for name in "ab":
        write_policy(tmp_path / name, {HARM: [0.1]}, "as it is", seed=None)
    with pytest.raises(InputError, match="both are called 'as it is' and neither was trained"):
        read_rows(tmp_path)


def test_paths_are_no_difference(tmp_path):
    for seed, path in enumerate(("pairs.jsonl", str(Path("pairs.jsonl").resolve()))):
        write_policy(tmp_path / f"{seed}", {HARM: [0.1]}, seed=seed, data_dir=path)
    assert len(read_rows(tmp_path)) == 1  # each has its own output_dir, too


@pytest.mark.parametrize(
    "other, what",
    [
        ({"ids": {"risky": ["risky 1", "risky 0"]}}, "ids of 'risky'"),
        ({"values": {HARM: [0.1, 0.2, 0.3]}}, "ids of 'risky'"),
        ({"values": {HARM: [0.1, 0.2], "empty": [0, 0]}}, "measures"),
        ({"values": {"harm: TF-IDF": [0.1, 0.2]}}, "measures"),
        ({"record": {"max_new_tokens": 128}}, "option 'max_new_tokens'"),
        ({"record": {"temperature": 1.0}}, "option 'temperature'"),
    ],
)
def test_rows_must_have_been_asked_the_same(tmp_path, other, what):
    usual = {"values": {HARM: [0.1, 0.2]}, "name": "TokenDPO", **TOKEN}
    write_policy(tmp_path / "a", {HARM: [0.1, 0.2]}, record={"bootstrap": 9, "seed": 0})
    write_policy(tmp_path / "b", **{**usual, **other})
    with pytest.raises(InputError) as caught:
        read_rows(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/a and {tmp_path}/b: the {what} differ")


def test_another_judge_of_the_same_name_is_refused(tmp_path):
    write_policy(tmp_path / "a", {HARM: [0.1, 0.2]})
    folder = write_policy(tmp_path / "b", {HARM: [0.1, 0.2]}, "TokenDPO", **TOKEN)
    edit("run.json", judges__SCM={"folder": "a", "weights": {}})(folder)  # another folder's name
    assert len(read_rows(tmp_path)) == 2
    edit("run.json", judges={HARM[6:]: {"weights": {"model.safetensors": "f" * 64}}})(folder)
    with pytest.raises(InputError, match="the judges differ"):
        read_rows(tmp_path)
    for place in "ab":
        edit("run.json", judges={HARM[6:]: "a chat model's name"})(tmp_path / place)
    assert len(read_rows(tmp_path)) == 2


def test_tables_of_both_kinds(tmp_path, capsys):
    runs = tmp_path / "runs"
    write_policy(runs / "align" / "dpo", {HARM: [0.1, 0.2]})
    write_policy(runs / ".half" / "dpo", {HARM: [0.9, 0.9]})  # half-written
    alone = ["alignment.csv", "alignment.md", "alignment_paired.csv", "run.json"]
    main(TablesConfig(str(runs)))
    folder = runs / "tables"
    assert sorted(path.name for path in folder.iterdir()) == alone
    assert (folder / "alignment.md").read_text() in capsys.readouterr().out
    with pytest.raises(FinishedAlready):
        main(TablesConfig(str(runs)))

    write_run(runs / "scm")
    main(TablesConfig(str(runs), overwrite=True))
    files = ["lengths.csv", "paired.csv", "table.csv", "table.md", "table.tex"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(alone + files)
    told = capsys.readouterr().out
    assert (folder / "alignment.md").read_text() in told
    assert (folder / "table.md").read_text() in told


@pytest.mark.parametrize("file", ["values.npz", "alignment.json"])
def test_a_policy_tested_anew_is_told_anew(tmp_path, file):
    folder = write_policy(tmp_path / "dpo", {HARM: [0.1, 0.2]})
    main(TablesConfig(str(tmp_path)))
    if file == "values.npz":
        save(**{HARM: np.ones(2), "ids risky": np.array(["risky 0", "risky 1"])})(folder)
    else:
        edit(file, method="DPO, again")(folder)
    with pytest.raises(InputError, match=f"{file}': the run was started with another"):
        main(TablesConfig(str(tmp_path)))


def test_neither_kind_is_there(tmp_path):
    write_policy(tmp_path / ".hidden", {HARM: [0.1]})
    told = "no test folder in it .none holds metrics.json, .* or alignment.json"
    with pytest.raises(InputError, match=told):
        main(TablesConfig(str(tmp_path)))


@pytest.mark.slow
def test_the_script(tmp_path):
    write_policy(tmp_path / "runs" / "dpo", {HARM: [0.1, 0.2]})
    write_policy(tmp_path / "runs" / "token", {HARM: [0.1, 0.1]}, "TokenDPO", **TOKEN)
    done = run("bash", "scripts/make-tables.sh", tmp_path / "runs", "--output-dir", tmp_path / "o")
    text = (tmp_path / "o" / "alignment.md").read_text()
    assert text in done.stdout and markdown_row(text, "TokenDPO", "DPO")[2].startswith("-5.0 [")
    edit("alignment.json", training__beta="low")(tmp_path / "runs" / "dpo")
    again = run("bash", "scripts/make-tables.sh", tmp_path / "runs", check=False)
    assert again.returncode == 2 and again.stderr.count("\n") == 1
    assert "dpo/alignment.json: field 'training.beta'" in again.stderr
