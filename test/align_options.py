"""Options of testing aligned policies."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from align.options import AlignConfig, annotator_input
from annotation.annotators.llm import LlmConfig
from evaluation.options import Strictness
from test.options import ReportConfig
from utils.files import InputError, sha256_file
from utils.options import TOKEN_BUDGET, Precision, refuse_below_one
from utils.run_record import model_summary, read_record

JudgeKind = Literal["scm", "tfidf", "classifier", "llama-guard", "qwen3guard-gen", "chat"]


@dataclass(kw_only=True)
class AlignTestConfig(ReportConfig):
    """Options of testing a policy: harm, usefulness, distance from the reference."""

    model_path: str
    """The policy: output folder of run-align.sh, or any language model's."""
    output_dir: str
    """Folder for answers, values and their means."""
    reference_path: str = ""
    """The model that it was before; default the one that its training names, else itself."""
    prompts: str
    """Labelled prompts; those of the split are asked."""
    prompt_sources: list[str] = field(default_factory=list)
    """Their sources that are asked; default all."""
    data_dir: str
    """Preference pairs, as run-align.sh takes them: the split's conversations are asked, too."""
    split: Literal["valid", "test"] = "test"
    """What is asked; valid to choose a method's options by."""
    references: str = ""
    """File of benign answers (id, prompt, response, source), whose likelihood is measured."""
    reference_sources: list[str] = field(default_factory=list)
    """Their sources that are read; default all."""
    per_source: int = 40
    """Prompts of each source and label, conversations and benign answers that are taken."""
    test_pairs: int = 200
    """Preference pairs that are compared."""
    judges: list[str]
    """KIND=PATH, one or more. scm: a trained SCM with its monitor.json, its holistic scorer. tfidf:
    the folder of records to fit it on. classifier, llama-guard, qwen3guard-gen: guards of others.
    chat: the name of a language model behind --judge-url."""
    judge_url: str = "http://127.0.0.1:8000/v1"
    """OpenAI-compatible base URL of the judge chat."""
    judge_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds its key."""
    strictness: Strictness = "strict"
    """Whether a controversial answer counts as harmful, of qwen3guard-gen."""
    max_new_tokens: int = 64
    """Tokens of an answer."""
    longest_prompt: int = 256
    """Longer prompts, in tokens, and pairs with one are left out."""
    temperature: float = 0.0
    """0 answers greedily."""
    token_budget: int = TOKEN_BUDGET
    """Padded tokens a batch."""
    frozen_cache: str = ""
    """Of a policy that was trained with --last-layers: folder to keep the other layers' output in,
    which it shares with its reference."""
    precision: Precision = "fp32"
    """Of guards that judge."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below_one(
            self, "per_source", "test_pairs", "max_new_tokens", "longest_prompt", "token_budget"
        )
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"--temperature: {self.temperature} is not in 0…∞")
        if not self.judges:
            raise InputError("--judges: names none")
        for kind, path in self.named_judges():
            if kind not in get_args(JudgeKind) or not path:
                known = ", ".join(get_args(JudgeKind))
                raise InputError(f"--judges: '{kind}={path}' is not KIND=PATH with one of {known}")
            if kind == "chat":
                self.chat_options(path)
        names = [judge_name(kind, path) for kind, path in self.named_judges()]
        if len(set(names)) < len(names):
            raise InputError(f"--judges: two are called '{max(names, key=names.count)}'")

    def named_judges(self) -> list[tuple[str, str]]:
        """Returns kind and path of each judge."""
        return [one.partition("=")[::2] for one in self.judges]

    def chat_options(self, model: str) -> LlmConfig:
        """Returns how the judge chat is asked: as run-annotate.sh llm asks."""
        try:
            return LlmConfig(
                self.prompts,
                self.output_dir,
                annotator_model=model,
                llm_url=self.judge_url,
                llm_key_env=self.judge_key_env,
            )
        except InputError as error:
            told = str(error).replace("--llm-url", "--judge-url")
            raise InputError(told.replace("--llm-key-env", "--judge-key-env")) from None

    @property
    def training(self) -> dict[str, Any]:
        """The record of the policy's training by run-align.sh; empty if there was none."""
        record = read_record(Path(self.model_path)) or {}
        return record if record.get("command") == AlignConfig.__name__ else {}

    @property
    def before(self) -> str:
        """Folder of the reference: what the policy was before its training."""
        trained = self.training.get("config", {}).get("base_model_path")
        return self.reference_path or trained or self.model_path

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read.

        Raises:
            InputError: A judge or model is none, or the model that the policy was trained from is
                another one by now.
        """
        from align.pairs import pairs_input
        from model.loading import backbone_summary

        judges: dict[str, Any] = {}
        for kind, path in self.named_judges():
            folder = Path(path)
            if kind == "tfidf":
                files = [folder / f"{split}.jsonl" for split in ("train", "valid")]
                judge = {one.name: sha256_file(one) for one in files}
            elif kind == "scm":
                judge = backbone_summary(folder) | annotator_input(path)
            else:
                judge = path if kind == "chat" else backbone_summary(folder)
            judges[judge_name(kind, path)] = judge
        reference, known = backbone_summary(Path(self.before)), self.training.get("backbone")
        moved = known and known | {"folder": reference["folder"]} != reference
        if moved and not self.reference_path:
            raise InputError(
                f"{self.before}: is not the model any more that {self.model_path} was trained"
                " from; --reference-path names it"
            )
        return {
            "pairs": pairs_input(self.data_dir),
            "prompts": sha256_file(Path(self.prompts)),
            "references": sha256_file(Path(self.references)) if self.references else None,
            "model": model_summary(Path(self.model_path)),
            "reference": reference,
            "judges": judges,
        }


def judge_name(kind: str, path: str) -> str:
    """Names a judge in tables."""
    return {"tfidf": "TF-IDF", "scm": "SCM", "chat": path}.get(kind, Path(path).resolve().name)
