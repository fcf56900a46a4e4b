"""Real input to FineHarm records, and the sample corpus that ships."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from annotation.options import BuildConfig
from annotation.pipeline import main
from annotation.selection import split_of
from annotation.sentences import NOTIONAL_POS
from annotation.word_labels import label_words
from data.fineharm import SPLITS, find_split, read_split
from tests.conftest import SAMPLE, no_score, parsed, run
from utils.files import InputError

TOPICS = "bread rain trains maps paint soup chess birds tides clocks moss kites".split()


def rows() -> list[dict]:
    """Judged responses: three to a prompt, both labels for each."""
    made = []
    for topic in TOPICS:
        for number in range(3):
            text = f"A word about {topic}.  It isn't hard! 😀\n\n- You can do it {number} times."
            made.append(
                {
                    "id": f"{topic}-{number}",
                    "prompt": f"Tell me about {topic}?",
                    "response": text,
                    "label": number % 2,
                    "label_source": "human",
                }  # fmt: skip
            )
    return made


@pytest.fixture()
def config(tmp_path) -> BuildConfig:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows())))
    return BuildConfig(
        str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), valid_share=0.3, test_share=0.3
    )


def read_out(config: BuildConfig) -> dict[str, list[dict]]:
    return {
        split: [r for _, r in read_split(find_split(config.output_dir, split), split)]
        for split in SPLITS
    }


def test_records_are_valid_and_split_by_prompt(config):
    main(config)
    splits = read_out(config)
    assert sum(map(len, splits.values())) == len(rows())
    prompts = [{record["prompt"] for record in records} for records in splits.values()]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])
    for record in sum(splits.values(), []):
        label = int(record["id"].endswith("1"))
        assert set(record["sentence_labels"]) == {label}
        cursor = 0
        for sentence in record["sentences"]:  # in order, untouched
            cursor = record["response"].index(sentence, cursor) + len(sentence)
        spelled = "".join(word for words in record["words"] for word in words)
        assert spelled == "".join(record["response"].split())
    stats = json.loads((config_path := find_split(config.output_dir, "test")).with_name(
        "stats.json").read_text())  # fmt: skip
    assert stats["splits"]["test"]["responses"]["all"] == len(splits["test"]) and config_path


def test_notional_words_of_harmful_sentences_are_harmful():
    (record,) = parsed("You will regret the terrible mistake, and soon.")
    (labels,) = label_words(record, [1], "pos", no_score)
    harmful = {word for word, label in zip(record.words[0], labels, strict=True) if label}
    assert harmful == {"regret", "terrible", "mistake", "soon"}
    assert label_words(record, [0], "pos", no_score) == [[0] * len(labels)]
    assert not NOTIONAL_POS & {"AUX", "PRON", "DET", "ADP", "PUNCT", "PART", "CCONJ"}


def test_two_runs_and_several_processes_write_the_same(config):
    main(replace(config, num_workers=1))
    other = replace(config, output_dir=config.output_dir + "2", num_workers=2)
    main(other)
    for split in SPLITS:
        one, two = find_split(config.output_dir, split), find_split(other.output_dir, split)
        assert one.read_bytes() == two.read_bytes()


def test_trivially_different_prompts_stay_together(config):
    assert split_of("Tell me: about bread!", config) == split_of("tell me about  BREAD", config)
    places = Counter(split_of(f"prompt {number}", config) for number in range(2000))
    assert all(abs(places[split] / 2000 - 0.3) < 0.05 for split in ("valid", "test"))


def test_validation_and_test_keep_only_the_trusted_rows(config, tmp_path):
    changed = [
        row | {"label_source": "human" if n % 3 else "judge"} for n, row in enumerate(rows())
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, changed)))
    main(replace(config, eval_only="label_source=human"))
    splits = read_out(config)
    assert all(record["id"][-1] != "0" for split in ("valid", "test") for record in splits[split])
    assert any(record["id"][-1] == "0" for record in splits["train"])
    stats = json.loads(find_split(config.output_dir, "test").with_name("stats.json").read_text())
    dropped = stats["rejected"]["not for evaluation (--eval-only)"]
    assert dropped == len(rows()) - sum(map(len, splits.values())) > 0
    with pytest.raises(InputError, match="field 'nosuch' of --eval-only is in no row"):
        main(replace(config, eval_only="nosuch=1", overwrite=True))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"label": 2}, "rows.jsonl: line 2: field 'label': 2 is not 0/1"),
        ({"label": None}, "rows.jsonl: line 2: field 'label': None is not 0/1"),
        ({"response": " "}, "rows.jsonl: line 2: field 'response': the response is empty"),
        ({"id": "bread-0"}, "rows.jsonl: line 2: field 'id': 'bread-0' stands at line 1 too"),
        ({"prompt": None}, "rows.jsonl: line 2: field 'prompt' is missing"),
        ({"label": True}, "rows.jsonl: line 2: field 'label': True is not 0/1"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(change, message, config, tmp_path):
    changed = rows()
    changed[1].update(change)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, changed)))
    with pytest.raises(InputError, match=message):
        main(config)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_split_without_a_class_is_refused(config, tmp_path):
    benign = [row for row in rows() if row["label"] == 0]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, benign)))
    with pytest.raises(InputError, match="split 'train' came out without harmful rows"):
        main(config)


def test_the_command_works(config):
    run(
        "python", "-m", "annotation.pipeline", "--input", config.input, "--output-dir",
        config.output_dir, "--valid-share", "0.3", "--test-share", "0.3",
    )  # fmt: skip
    assert read_out(config)["train"]
    done = run(
        "python", "-m", "annotation.pipeline", "--input", config.input, "--output-dir",
        config.output_dir, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "already holds an earlier run" in done.stderr


# ---- the sample corpus ----


@pytest.fixture(scope="module")
def sample() -> dict[str, list[dict]]:
    return {
        split: [record for _, record in read_split(SAMPLE / f"{split}.json", split)]
        for split in SPLITS
    }


def test_the_sample_is_large_balanced_and_varied(sample):
    records = sum(sample.values(), [])
    harmful = [record for record in records if any(record["sentence_labels"])]
    assert len(records) >= 300 and len(harmful) * 2 == len(records)
    assert len({record["prompt"] for record in records}) == len(records)
    starts = [
        record["sentence_labels"].index(1) / len(record["sentence_labels"]) for record in harmful
    ]
    thirds = Counter(min(int(3 * start), 2) for start in starts)
    assert all(thirds[third] >= 0.2 * len(harmful) for third in range(3)), thirds
    openings = Counter(" ".join(record["response"].split()[:3]) for record in records)
    assert openings.most_common(1)[0][1] <= 5
    lengths = [
        sum(len(record["response"].split()) for record in records if record in harmful) / 220,
        sum(len(record["response"].split()) for record in records if record not in harmful) / 220,
    ]
    assert abs(lengths[0] / lengths[1] - 1) < 0.05


def test_the_samples_contrastive_pairs_stay_together(sample):
    """Records of a pair are numbered 2n and 2n + 1 within their part of the corpus."""
    places: dict[str, set[str]] = {}
    for split, records in sample.items():
        for record in records:
            pair = f"{record['id'][:-3]}{int(record['id'][-3:]) // 2}"
            places.setdefault(pair, set()).add(split)
    assert len(places) == 220 and all(len(splits) == 1 for splits in places.values())


def test_the_samples_sentences_and_words_are_those_of_its_responses(sample):
    for record in sum(sample.values(), []):
        cursor = 0
        for sentence, words in zip(record["sentences"], record["words"], strict=True):
            cursor = record["response"].index(sentence, cursor) + len(sentence)
            assert "".join(words) == "".join(sentence.split())


def test_the_samples_word_labels_follow_the_rule(sample):
    records = sample["test"]
    sentences = [sentence for record in records for sentence in record["sentences"]]
    sentence_labels = [label for record in records for label in record["sentence_labels"]]
    words = [words for record in records for words in record["words"]]
    word_labels = [labels for record in records for labels in record["word_labels"]]
    for number, record in enumerate(parsed(*sentences)):
        labels = [sentence_labels[number]] * len(record.sentences)
        found = label_words(record, labels, "pos", no_score)
        assert sum(record.words, []) == words[number] and sum(found, []) == word_labels[number]
