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
import re
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice, tee
from pathlib import Path
from typing import Literal, TextIO

from tqdm import tqdm

from data.fineharm import SPLITS
from utils.agreement import compare_files
from utils.annotation import Annotator, AnnotatorLabels, Finished, Parsed
from utils.annotation_report import Statistics, plot_statistics, print_statistics
from utils.cli import run_command
from utils.files import (
    InputError,
    atomic_folder,
    read_json,
    refuse_overwrite,
    sha256_file,
    write_json,
)
from utils.kept_work import finish_folder, keep_annotations, whole_lines
from utils.sources import Columns, Row, Seen, iterate_file, prompt_key, read_judged
from utils.words import (
    MAX_CHARACTERS,
    PARSER,
    SPACY_MODEL,
    WordRule,
    label_words,
    parse,
    span_labels,
)

MARK = "stats.json"  # each output folder of this command holds it
SOME_UNANNOTATED = 3  # exit status: all is written, but some records got no verdict
NO_VERDICT = "no verdict"
SMALL = 250_000  # bytes of input; below, further processes cost more than they bring
PARSING_OPTIONS = (  # what decides which rows are parsed, and into which split
    "prompt_column response_column label_columns id_column spans_column near_duplicates"
    " valid_share test_share eval_only seed spacy_model"
).split()


@dataclass
class BuildConfig:
    """Options of build_fineharm."""

    input: str = field(
        default="",
        metadata={"help": "JSON list or lines, CSV or Parquet of judged responses (1 = harmful)."},
    )
    output_dir: str = field(
        default="", metadata={"help": "Folder for train/valid/test.jsonl, rejected.jsonl, stats."}
    )
    compare: list[str] = field(
        default_factory=list,
        metadata={"help": "Instead of building: two FineHarm files or folders to compare."},
    )
    prompt_column: str = field(
        default="prompt", metadata={"help": "Column of the prompt; '' where there is none."}
    )
    response_column: str = field(default="response", metadata={"help": "Column of the response."})
    label_columns: list[str] = field(
        default_factory=lambda: ["label"],
        metadata={
            "help": "Columns of 0/1 judgements of the response; the majority counts. '' where there"
            " are none: a response is harmful when it has a span."
        },
    )
    id_column: str = field(default="id", metadata={"help": "Column of the id, if there is one."})
    spans_column: str = field(
        default="",
        metadata={"help": "Column of human [start, end) spans of harm, in code points."},
    )
    annotator: Literal["response", "mil", "scm", "hf", "llm"] = field(
        default="response",
        metadata={
            "help": "Who labels sentences. response: what the response is. mil: learnt from"
            " response labels alone. scm: a trained SCM. hf: a text classifier. llm: a chat"
            " endpoint."
        },
    )
    annotator_model: str = field(
        default="", metadata={"help": "scm, hf: model folder. llm: the endpoint's model name."}
    )
    annotator_threshold: float = field(
        default=0.5, metadata={"help": "hf: of a sentence's probability. scm: of a token's."}
    )
    token_share: float = field(
        default=0.3, metadata={"help": "scm: least share of harmful tokens of a harmful sentence."}
    )
    harmful_label: str = field(
        default="", metadata={"help": "hf: name of the harmful class where it cannot be told."}
    )
    precision: Literal["auto", "fp32", "bf16"] = field(
        default="auto", metadata={"help": "scm, hf: auto takes bf16 on hardware made for it."}
    )
    mil_false_positives: float = field(
        default=0.05, metadata={"help": "mil: share of benign sentences that may look harmful."}
    )
    llm_url: str = field(
        default="http://127.0.0.1:8000/v1", metadata={"help": "OpenAI-compatible base URL."}
    )
    llm_key_env: str = field(
        default="OPENAI_API_KEY", metadata={"help": "Environment variable that holds the key."}
    )
    llm_cache: str = field(
        default="",
        metadata={"help": "File that keeps every answer; default OUTPUT_DIR.answers.sqlite."},
    )
    llm_concurrency: int = field(default=8, metadata={"help": "Calls in flight at once."})
    llm_retries: int = field(
        default=6, metadata={"help": "Retries, with backoff, of a call that fails."}
    )
    llm_timeout: float = field(default=120.0, metadata={"help": "Seconds a call may take."})
    llm_answers: int = field(
        default=3, metadata={"help": "Answers asked for until one fits the schema."}
    )
    llm_temperature: float = field(
        default=0.0,
        metadata={
            "help": "Temperature of sampling; a negative one is left out of the request, as GPT-5"
            " and the o-series refuse any."
        },
    )
    llm_policy: str = field(
        default="",
        metadata={"help": "UTF-8 text file: what counts as harmful; '' takes the built-in policy."},
    )
    word_rule: WordRule = field(
        default="pos",
        metadata={
            "help": "Words of a harmful sentence that are harmful. pos: notional parts of speech,"
            " the paper's. all: each. delete: those without which the annotator's score of the"
            " sentence is lower. spans: those humans marked, which then label sentences, too."
        },
    )
    consistency: Literal["train", "all", "none"] = field(
        default="train",
        metadata={
            "help": "Which harmful responses without a harmful sentence or word, and benign ones"
            " with one, are dropped. train: those of the training split; in validation and test"
            " their sentences take the response's label, so that no annotator decides who is"
            " tested. all: all of them, as in the paper."
        },
    )
    near_duplicates: float = field(
        default=0.9,
        metadata={"help": "Least similarity (Jaccard, estimated) of a duplicate; 1: exact ones."},
    )
    valid_share: float = field(default=0.1, metadata={"help": "Share of prompts for validation."})
    test_share: float = field(default=0.1, metadata={"help": "Share of prompts for test."})
    eval_only: str | None = field(
        default=None,
        metadata={
            "help": "FIELD=VALUE: validation and test keep only rows with this value, e.g."
            " label_source=human. The other rows of their prompts are dropped and counted."
        },
    )
    seed: int = field(default=42, metadata={"help": "Decides which prompts go where."})
    spacy_model: str = field(
        default=SPACY_MODEL,
        metadata={
            "help": "Installed spaCy pipeline that finds sentences and parts of speech; that of the"
            " responses' language."
        },
    )
    parsed_cache: str = field(
        default="",
        metadata={
            "help": "Folder that keeps parsed records and annotations for further runs on the same"
            " rows; by default OUTPUT_DIR.work keeps them until the run is complete."
        },
    )
    num_workers: int = field(
        default=0, metadata={"help": "Processes that parse; 0 takes one a core."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the output folder."})

    def __post_init__(self) -> None:
        if self.compare:
            if len(self.compare) != 2 or self.input or self.output_dir:
                raise InputError("--compare: takes two files or folders and no --input")
            return
        for name in ("input", "output_dir"):
            if not getattr(self, name):
                raise InputError(f"--{name.replace('_', '-')}: is missing")
        if not any(self.label_columns) and not self.spans_column:
            raise InputError("--label-columns: without any, --spans-column is needed")
        shares = (self.valid_share, self.test_share)
        if not all(0 < share < 1 for share in shares) or sum(shares) >= 1:
            raise InputError("--valid-share and --test-share: positive, and below 1 together")
        if self.eval_only is not None and not re.fullmatch(r"[^=]+=.+", self.eval_only):
            raise InputError(f"--eval-only: '{self.eval_only}' is not FIELD=VALUE")
        for name in ("num_workers", "llm_retries"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name.replace('_', '-')}: {getattr(self, name)} is negative")
        for name in ("llm_concurrency", "llm_answers", "llm_timeout"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name.replace('_', '-')}: {getattr(self, name)} is not > 0")
        # the key itself, given in place of its variable's name, would end up in stats.json
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", self.llm_key_env):
            raise InputError("--llm-key-env: takes the name of an environment variable")
        if not 0.7 <= self.near_duplicates <= 1:
            raise InputError(f"--near-duplicates: {self.near_duplicates} is not in 0.7…1")
        for name in ("annotator_threshold", "token_share"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"--{name.replace('_', '-')}: {getattr(self, name)} is not in 0…1")
        if not 0 < self.mil_false_positives < 1:
            raise InputError(f"--mil-false-positives: {self.mil_false_positives} is not in 0…1")
        if self.annotator in ("scm", "hf", "llm") and not self.annotator_model:
            raise InputError(f"--annotator-model: --annotator {self.annotator} needs one")
        if self.word_rule == "spans" and not self.spans_column:
            raise InputError("--spans-column: --word-rule spans needs one")
        if self.word_rule == "spans" and self.annotator != "response":
            raise InputError("--word-rule spans: labels sentences itself, --annotator is idle")
        if self.word_rule == "delete" and self.annotator not in ("mil", "hf"):
            raise InputError(
                f"--word-rule delete: --annotator {self.annotator} scores no sentences"
            )


def split_of(key: str, config: BuildConfig) -> str:
    """Assigns a prompt to a split by a hash of its letters, digits and the seed.

    Case, punctuation and spacing do not count, so trivially different prompts stay together, and
    further rows move no prompt from one split to another.
    """
    digest = hashlib.sha256(f"{config.seed}\n{prompt_key(key)}".encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64  # uniform in [0, 1)
    if place < config.test_share:
        return "test"
    return "valid" if place < config.test_share + config.valid_share else "train"


class Rejects:
    """Writes what is left out to rejected.jsonl, and counts it by reason."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.counts = file, Counter()

    def add(
        self, reason: str, item: Row | Parsed, detail: str = "", labels: Mapping | None = None
    ) -> None:
        """Writes one record, with the labels it would have had if there are any."""
        self.counts[reason] += 1
        entry = {"id": item.id, "reason": reason, "detail": detail, "label": item.label}
        entry |= {"prompt": item.prompt, "response": item.response} | dict(labels or {})
        print(json.dumps(entry, ensure_ascii=False), file=self.file)


def select(
    rows: Iterable[Row], config: BuildConfig, seen: Seen, rejects: Rejects
) -> Iterator[tuple[Row, str]]:
    """Gives the rows to annotate, each with its split; the others are rejected.

    Args:
        rows: All rows.
        config: The options.
        seen: Remembers rows.
        rejects: Takes what is left out.

    Raises:
        InputError: Two rows share an id; the field of --eval-only is in no row.
    """
    name, _, value = (config.eval_only or "").partition("=")
    known = not name
    for row in rows:
        seen.check_id(row, config.id_column)
        known = known or name in row.fields
        # without prompts, each response is on its own
        split = split_of(row.prompt or row.response, config)
        reason, detail = "", ""
        if row.label is None:
            reason = "judgements are tied"
        elif len(row.response) > MAX_CHARACTERS:
            reason, detail = "too long to parse", f"{len(row.response)} characters"
        elif split != "train" and name and str(row.fields.get(name)) != value:
            reason = "not for evaluation (--eval-only)"
        elif found := seen.duplicate_of(row):
            reason, detail = found[0], f"of {found[1]}"
        if reason:
            rejects.add(reason, row, detail)
        else:
            yield row, split
    if not known:
        raise InputError(f"{config.input}: field '{name}' of --eval-only is in no row")


def make_annotator(config: BuildConfig, parsed: Path) -> Annotator:
    """Returns the annotator of a configuration; what it needs is imported only then.

    Args:
        config: The options.
        parsed: The parsed corpus; read by mil alone, which learns from it here.
    """
    if config.annotator == "mil":
        from annotators.mil import MilAnnotator

        return MilAnnotator(lambda: read_spool(parsed / "parsed.jsonl"), config.mil_false_positives)
    if config.annotator == "hf":
        from annotators.hf import ClassifierAnnotator

        return ClassifierAnnotator(
            Path(config.annotator_model),
            config.harmful_label,
            config.annotator_threshold,
            config.precision,
        )
    if config.annotator == "scm":
        from annotators.scm import ScmAnnotator

        return ScmAnnotator(
            Path(config.annotator_model),
            config.annotator_threshold,
            config.token_share,
            config.precision,
        )
    if config.annotator == "llm":
        from annotators.llm import POLICY, LLMAnnotator, read_policy

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
    from annotators.response import ResponseAnnotator

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


def check_classes(config: BuildConfig, counts: Mapping[str, int], when: str) -> None:
    """Refuses a split without harmful or without benign records.

    Raises:
        InputError: There is such a split.
    """
    for split in SPLITS:
        for label, word in ((1, "harmful"), (0, "benign")):
            if not counts.get(f"{split} {label}"):
                raise InputError(
                    f"{config.input}: split '{split}' came out without {word} rows{when}; more"
                    " rows, another --seed or larger shares are needed"
                )


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


if __name__ == "__main__":
    run_command(BuildConfig, main)
