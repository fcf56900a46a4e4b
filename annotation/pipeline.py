"""Prompt–response–label rows → FineHarm records: the annotation pipeline (run-annotate.sh).

Rows are read, checked, rid of duplicates, split by prompt and parsed in one stream; the parsed
records lie on disk until the annotator has labelled their sentences. Memory does not grow with the
corpus.

Source: arXiv 2506.09996, section on FineHarm's annotation pipeline.
"""

import errno
import json
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from itertools import tee
from pathlib import Path

from tqdm import tqdm

from annotation.duplicates import DuplicateIndex
from annotation.options import BuildConfig
from annotation.records import AnnotatedRecord, Annotator, ParsedResponse
from annotation.report import Statistics, plot_statistics, print_statistics
from annotation.selection import Rejects, check_classes, held_out_prompts, select
from annotation.sentences import parse
from annotation.sources import count_rows, read_judged
from annotation.word_labels import label_words, span_labels
from data.fineharm import SPLITS
from utils.files import write_json
from utils.run_record import run_folder

SOME_UNANNOTATED = 3  # exit status: all is written, but some records got no verdict
NO_VERDICT = "no verdict"
SMALL = 250_000  # bytes of input; below, further processes cost more than they bring


def inconsistency(label: int, sentence_labels: list[int]) -> str:
    """Says how sentence labels contradict their response's label; "" where they do not.

    Source: arXiv 2506.09996, section on FineHarm: such records are filtered out.
    """
    if label and not any(sentence_labels):
        return "harmful response without a harmful sentence"
    if not label and any(sentence_labels):
        return "benign response with a harmful sentence"
    return ""


def label_record(
    config: BuildConfig, record: ParsedResponse, labels: list[int], annotator: Annotator
) -> tuple[AnnotatedRecord, str]:
    """Labels the words of a record, and its sentences anew where they contradict the response.

    Returns:
        The annotated record, and why it should be dropped ("" where it should not).
    """
    words = label_words(record, labels, config.word_rule, annotator.score)
    annotated = record.labelled(labels, words)
    reason = inconsistency(record.label, labels)
    if reason and config.consistency == "train" and record.split != "train":
        reason, agreeing = "", [record.label] * len(labels)
        annotated = record.labelled(
            agreeing, label_words(record, agreeing, config.word_rule, annotator.score)
        )
        annotated["annotator_labels"] = {"sentence_labels": labels, "word_labels": words}
    elif any(labels) and not any(map(any, words)) and record.split == "train":
        reason = reason or "harmful response without a harmful word"
    return annotated, reason if config.consistency != "none" else ""


def parse_all(config: BuildConfig, spool: Path, rejects: Rejects) -> Counter[str]:
    """Parses the selected rows into a file, a record a line; counts them by "split label"."""
    counts, total = Counter(), count_rows(config)
    small = Path(config.input).stat().st_size < SMALL
    workers = 1 if small else config.num_workers or os.cpu_count() or 1
    held_out = held_out_prompts(read_judged(config), config) if config.hold_out else ()
    scratch = spool.with_name("seen.sqlite")
    seen = DuplicateIndex(scratch, config.near_duplicates)
    with open(spool, "w", encoding="utf-8") as file:
        rows = tqdm(read_judged(config), "read and parse", total, unit="row")
        try:
            chosen = select(rows, config, seen, rejects, held_out)
            for record in parse(chosen, workers, config.spacy_model):
                print(json.dumps(vars(record), ensure_ascii=False), file=file)
                counts[f"{record.split} {record.label}"] += 1
        except sqlite3.Error as error:
            raise OSError(errno.EIO, str(error), str(scratch)) from None
    seen.close()
    scratch.unlink()
    return counts


def read_spool(spool: Path) -> Iterator[ParsedResponse]:
    """Gives the parsed records again."""
    with open(spool, encoding="utf-8") as file:
        for line in file:
            yield ParsedResponse(**json.loads(line))


def annotate_all(
    config: BuildConfig, annotator: Annotator, spool: Path, total: int, rejects: Rejects
) -> Statistics:
    """Labels sentences and words of the parsed records and writes the splits beside them."""
    statistics = Statistics()
    with ExitStack() as stack:
        paths = {split: spool.with_name(f"{split}.jsonl") for split in SPLITS}
        files = {
            split: stack.enter_context(open(path, "w", encoding="utf-8"))
            for split, path in paths.items()
        }
        # holds what the annotator reads ahead
        records, to_annotate = tee(read_spool(spool))
        annotations = stack.enter_context(closing(annotator.annotate(to_annotate)))
        pairs = zip(records, annotations, strict=True)
        for record, annotation in tqdm(pairs, "annotate", total, unit="record"):
            labels = annotation.labels
            if labels is None:
                rejects.add(NO_VERDICT, record, annotation.problem or "")
                continue
            if annotation.problem:
                statistics.problems[annotation.problem] += 1
            if config.word_rule == "spans":
                labels = span_labels(record)
            annotated, reason = label_record(config, record, labels, annotator)
            if reason:
                rejects.add(reason, record, **annotated)
                continue
            statistics.add(record.split, annotated)
            print(json.dumps(annotated, ensure_ascii=False), file=files[record.split])
    return statistics


def main(config: BuildConfig) -> None:
    """Builds the records and writes the three splits."""
    with (
        run_folder(config) as folder,
        open(folder / "rejected.jsonl", "w", encoding="utf-8") as file,
    ):
        annotator = config.make_annotator()  # a model that is not there is told before parsing
        rejects, spool = Rejects(file), folder / "parsed.jsonl"
        parsed = parse_all(config, spool, rejects)
        check_classes(config, parsed, rejects)
        annotator.fit(lambda: read_spool(spool))
        statistics = annotate_all(config, annotator, spool, parsed.total(), rejects)
        spool.unlink()
        check_classes(config, statistics.records, rejects, " that the annotator agrees with")
        name = "spans" if config.word_rule == "spans" else config.annotator
        stats = {
            **config.inputs(),
            "options": asdict(config),
            "annotator": {"name": name, **annotator.report()},
            "word_rule": config.word_rule,
            "parsed": parsed.total(),
            "rejected": dict(rejects.counts),
            "problems": dict(statistics.problems),
            "splits": statistics.splits,
        }
        plot_statistics(stats, folder / "stats.png")
        write_json(folder / "stats.json", stats)
    print_statistics(stats)
    if missing := rejects.counts[NO_VERDICT]:
        print(f"{missing} records got no verdict: {config.output_dir}/rejected.jsonl")
        sys.exit(SOME_UNANNOTATED)
