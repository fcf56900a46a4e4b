"""The sample corpus that ships, which the pipeline has made."""

from collections import Counter

import pytest

from annotation.word_labels import label_words
from data.fineharm import SPLITS, read_split
from tests.conftest import SAMPLE, no_score, parsed


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
