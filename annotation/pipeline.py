"""Prompt–response–label rows → FineHarm records: the annotation pipeline (run-annotate.sh).

Rows are read, checked, rid of duplicates, split by prompt and parsed in one stream; the parsed
records lie on disk until the annotator has labelled their sentences. Memory does not grow with the
corpus.

Source: arXiv 2506.09996, section on FineHarm's annotation pipeline.
"""

import errno
import hashlib
import json
import os
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice, tee
from pathlib import Path

from tqdm import tqdm

from annotation.agreement import compare_files
from annotation.duplicates import Seen
from annotation.options import BuildConfig
from annotation.records import Annotator, AnnotatorLabels, Finished, Parsed
from annotation.report import Statistics, plot_statistics, print_statistics
from annotation.resume import finish_folder, keep_annotations, whole_lines
from annotation.selection import Rejects, check_classes, select
from annotation.sentences import PARSER, parse
from annotation.sources import Columns, iterate_file, read_judged
from annotation.word_labels import label_words, span_labels
from data.fineharm import SPLITS
from utils.files import (
    InputError,
    atomic_folder,
    read_json,
    refuse_overwrite,
    sha256_file,
    write_json,
)

MARK = "stats.json"  # each output folder of this command holds it
SOME_UNANNOTATED = 3  # exit status: all is written, but some records got no verdict
NO_VERDICT = "no verdict"
SMALL = 250_000  # bytes of input; below, further processes cost more than they bring
PARSING_OPTIONS = (  # what decides which rows are parsed, and into which split
    "prompt_column response_column label_columns id_column spans_column near_duplicates"
    " valid_share test_share eval_only seed spacy_model"
).split()


def make_annotator(config: BuildConfig, parsed: Path) -> Annotator:
    """Returns the annotator of a configuration; what it needs is imported only then.

    Args:
        config: The options.
        parsed: The parsed corpus; read by mil alone, which learns from it here.
    """
    if config.annotator == "mil":
        from annotation.annotators.mil import MilAnnotator

        return MilAnnotator(lambda: read_spool(parsed / "parsed.jsonl"), config.mil_false_positives)
    if config.annotator == "hf":
        from annotation.annotators.hf import ClassifierAnnotator

        return ClassifierAnnotator(
            Path(config.annotator_model),
            config.harmful_label,
            config.annotator_threshold,
            config.precision,
        )
    if config.annotator == "scm":
        from annotation.annotators.scm import ScmAnnotator

        return ScmAnnotator(
            Path(config.annotator_model),
            config.annotator_threshold,
            config.token_share,
            config.precision,
        )
    if config.annotator == "llm":
        from annotation.annotators.llm import POLICY, LLMAnnotator, read_policy

        return LLMAnnotator(
            url=config.llm_url,
            model=config.annotator_model,
            key_env=config.llm_key_env,
            cache=outside(config, "--llm-cache", config.llm_cache, ".answers.sqlite"),
            concurrency=config.llm_concurrency,
            retries=config.llm_retries,
            timeout=config.llm_timeout,
            answers=config.llm_answers,
            temperature=config.llm_temperature,
            policy=read_policy(Path(config.llm_policy)) if config.llm_policy else POLICY,
        )
    from annotation.annotators.response import ResponseAnnotator

    return ResponseAnnotator()


def outside(config: BuildConfig, option: str, name: str, ending: str) -> Path:
    """Returns a place for what outlives a run: as named, else beside the output folder.

    Args:
        config: The options.
        option: Named in messages.
        name: The option's value; "" for the default.
        ending: What the default adds to the output folder's name.

    Raises:
        InputError: It lies in the output folder, which is replaced as a whole.
    """
    output = Path(config.output_dir).resolve()
    path = Path(name).resolve() if name else Path(f"{output}{ending}")
    if path.is_relative_to(output):
        raise InputError(f"{option}: {name}: lies in the output folder; name another place")
    return path


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
    config: BuildConfig, record: Parsed, labels: list[int], annotator: Annotator
) -> tuple[Finished, str]:
    """Labels the words of a record, and its sentences anew where they contradict the response.

    Returns:
        The finished record, and why it should be dropped ("" where it should not).
    """
    words = label_words(record, labels, config.word_rule, annotator.score)
    finished = Finished(
        id=record.id,
        prompt=record.prompt,
        response=record.response,
        sentences=record.sentences,
        sentence_labels=labels,
        words=record.words,
        word_labels=words,
    )
    reason = inconsistency(record.label, labels)
    if reason and config.consistency == "train" and record.split != "train":
        finished["annotator_labels"] = AnnotatorLabels(sentence_labels=labels, word_labels=words)
        labels, reason = [record.label] * len(labels), ""
        finished["sentence_labels"] = labels
        finished["word_labels"] = label_words(record, labels, config.word_rule, annotator.score)
    elif any(labels) and not any(map(any, words)) and record.split == "train":
        reason = reason or "harmful response without a harmful word"
    return finished, reason if config.consistency != "none" else ""


def parse_all(config: BuildConfig, folder: Path) -> None:
    """Reads, selects and parses the corpus into a folder, or goes on with that.

    It then holds parsed.jsonl, rejected.jsonl and counts.json: records by "split label", and the
    rejected ones by reason. What was read is read again, what was parsed is not parsed again.
    """
    source, counts = Path(config.input), Counter()
    columns = Columns(
        config.prompt_column,
        config.response_column,
        [name for name in config.label_columns if name],
        config.id_column,
        config.spans_column,
    )
    workers = config.num_workers or os.cpu_count() or 1
    if source.is_file() and source.stat().st_size < SMALL:
        workers = 1
    done = whole_lines(folder / "parsed.jsonl")
    scratch = folder / "seen.sqlite"
    scratch.unlink(missing_ok=True)
    seen = Seen(scratch, config.near_duplicates)
    total = sum(1 for _ in iterate_file(source))
    with (
        open(folder / "parsed.jsonl", "a", encoding="utf-8") as file,
        open(folder / "rejected.jsonl", "w", encoding="utf-8") as rejected,
    ):
        rejects = Rejects(rejected)
        rows = tqdm(read_judged(source, columns), "read and parse", total, unit="row")
        selected = select(rows, config, seen, rejects)
        try:
            for row, split in islice(selected, done):
                counts[f"{split} {row.label}"] += 1
            for record in parse(selected, workers, config.spacy_model):
                print(json.dumps(vars(record), ensure_ascii=False), file=file)
                counts[f"{record.split} {record.label}"] += 1
        except sqlite3.Error as error:
            raise OSError(errno.EIO, str(error), str(scratch)) from None
    seen.close()
    scratch.unlink()
    write_json(folder / "counts.json", {"parsed": counts, "rejected": rejects.counts})


def parsing_key(config: BuildConfig) -> str:
    """Returns what tells parsed corpora apart: input, options and parser."""
    decisive = {name: getattr(config, name) for name in PARSING_OPTIONS}
    decisive |= {"input": sha256_file(Path(config.input)), "parser": PARSER}
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]


def read_spool(spool: Path) -> Iterator[Parsed]:
    """Gives the parsed records again."""
    with open(spool, encoding="utf-8") as file:
        for line in file:
            yield Parsed(**json.loads(line))


def annotations_file(config: BuildConfig, parsed: Path) -> Path | None:
    """Returns where annotations of a parsed corpus are kept, by model and options.

    Only those of local models are: the others take a minute, or have a cache of their own.
    """
    if config.annotator not in ("hf", "scm"):
        return None
    names = ("annotator", "annotator_threshold", "token_share", "harmful_label", "precision")
    decisive: dict = {name: getattr(config, name) for name in names}
    files = sorted(path for path in Path(config.annotator_model).iterdir() if path.is_file())
    decisive["model"] = [(path.name, sha256_file(path)) for path in files]
    key = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]
    return parsed / f"{config.annotator}-{key}.jsonl"


def annotate_all(
    config: BuildConfig, annotator: Annotator, parsed: Path, folder: Path, rejects: Rejects
) -> Statistics:
    """Labels sentences and words of the parsed records and writes the splits into a folder."""
    total = sum(read_json(parsed / "counts.json")["parsed"].values())
    statistics = Statistics()
    with ExitStack() as stack:
        files = {
            split: stack.enter_context(open(folder / f"{split}.jsonl", "w", encoding="utf-8"))
            for split in SPLITS
        }
        # holds what the annotator reads ahead
        records, to_annotate = tee(read_spool(parsed / "parsed.jsonl"))
        if kept := annotations_file(config, parsed):
            annotations = keep_annotations(annotator.annotate, to_annotate, kept)
        else:
            annotations = annotator.annotate(to_annotate)
        pairs = zip(records, annotations, strict=True)
        for record, annotation in tqdm(pairs, "annotate", total, unit="record"):
            labels = annotation.labels
            if labels is not None and config.word_rule == "spans":
                labels = span_labels(record)
            if labels is None:
                rejects.add(NO_VERDICT, record, annotation.problem or "")
                continue
            finished, reason = label_record(config, record, labels, annotator)
            if reason:
                rejects.add(reason, record, labels=finished)
                continue
            statistics.add(record.split, finished)
            print(json.dumps(finished, ensure_ascii=False), file=files[record.split])
    return statistics


def main(config: BuildConfig) -> None:
    """Builds the records and writes the three splits; or compares two annotations."""
    if config.compare:
        return compare_files(*map(Path, config.compare))
    output_dir, source = Path(config.output_dir), Path(config.input)
    work = outside(config, "--parsed-cache", config.parsed_cache, ".work")
    parsed = work / parsing_key(config)
    refuse_overwrite(output_dir, config.overwrite, MARK)
    # a model that is not there is told before an hour of parsing
    annotator = None if config.annotator == "mil" else make_annotator(config, parsed)
    with finish_folder(parsed) as unfinished:
        if unfinished:
            parse_all(config, unfinished)
    counts = read_json(parsed / "counts.json")
    check_classes(config, counts["parsed"], "")
    annotator = annotator or make_annotator(config, parsed)
    with (
        atomic_folder(output_dir, MARK, config.overwrite) as folder,
        open(folder / "rejected.jsonl", "w", encoding="utf-8") as file,
    ):
        rejects = Rejects(file)
        with open(parsed / "rejected.jsonl", encoding="utf-8") as earlier:
            shutil.copyfileobj(earlier, file)
        rejects.counts.update(counts["rejected"])
        statistics = annotate_all(config, annotator, parsed, folder, rejects)
        missing = rejects.counts[NO_VERDICT]
        reason = " that the annotator agrees with"
        reason += f" ({missing} records got no verdict)" if missing else ""
        check_classes(config, statistics.records, reason)
        name = "spans" if config.word_rule == "spans" else config.annotator
        stats = {
            "input": {"file": source.name, "sha256": sha256_file(source)},
            "options": asdict(config),
            "annotator": {"name": name, **annotator.report()},
            "word_rule": config.word_rule,
            "parsed": sum(counts["parsed"].values()),
            "rejected": dict(rejects.counts),
            **statistics.summary(),
        }
        plot_statistics(stats, folder / "stats.png")
        write_json(folder / "stats.json", stats)
    if not config.parsed_cache:
        shutil.rmtree(work)
    print_statistics(stats)
    print(f"written to {output_dir}")
    if missing:
        print(f"{missing} records got no verdict from the annotator: {output_dir}/rejected.jsonl")
        sys.exit(SOME_UNANNOTATED)
