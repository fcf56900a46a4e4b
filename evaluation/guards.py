"""Guards that others trained, as detectors: a classifier, a generative guard, Qwen3Guard-Stream.

A guard reads text with a tokenizer of its own. The text is what the processed data holds: data made
with `--join original` gives the untouched response, `newline` data one with a newline after each
sentence. What run-data.sh cut off is not there either.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from data.batches import token_budget_batches
from data.splits import Examples
from evaluation.options import Strictness, Style
from evaluation.predict import Scores
from evaluation.predictions import token_pieces
from model.loading import load_checkpoint
from model.text_classifier import TextClassifier, positions
from utils.device import default_device, use_bf16
from utils.files import InputError
from utils.options import Precision

OPTION = "--model-path"

# What a generative guard says before its verdict, and the words of it.
# Source: the model cards of Llama-Guard-3-8B and Qwen3Guard-Gen.
VERDICTS: dict[Style, tuple[str, tuple[str, ...]]] = {
    "llama-guard": ("\n\n", ("safe", "unsafe")),
    "qwen3guard-gen": ("Safety: ", ("Safe", "Unsafe", "Controversial")),
}
# A verdict's harm. Source: eval/eval_stream.py of github.com/QwenLM/Qwen3Guard.
HARM: dict[Strictness, dict[str, float]] = {
    "strict": {"safe": 0.0, "controversial": 1.0, "unsafe": 1.0},
    "loose": {"safe": 0.0, "controversial": 0.0, "unsafe": 1.0},
}


@dataclass
class Dialogue:
    """The text of one example of T response tokens.

    Attributes:
        id: Of the record.
        prompt: Without the two newlines that the data format puts after it.
        response: What its tokens spell.
        ends: int [T], the characters of the response that are out after each token; a token that
            ends within a character has not brought it yet.
    """

    id: str
    prompt: str
    response: str
    ends: np.ndarray


def read_dialogues(examples: Examples, tokenizer: PreTrainedTokenizerFast) -> list[Dialogue]:
    """Turns the examples of a split back into text.

    Args:
        examples: N examples.
        tokenizer: The data folder's.
    """
    dialogues = []
    for id_, ids, start in zip(
        examples.ids, examples.input_ids, examples.response_start, strict=True
    ):
        prompt = "".join(token_pieces(tokenizer, ids[:start]))  # leaves [BOS] and [CLS] out
        pieces = token_pieces(tokenizer, ids[start:])
        ends = np.cumsum([len(piece) for piece in pieces])
        dialogues.append(Dialogue(id_, prompt.removesuffix("\n\n"), "".join(pieces), ends))
    return dialogues


@dataclass
class Judged:
    """What a guard thinks of a split, and how many responses it did not read to their end."""

    scores: Scores
    cut: int


class ClassifierGuard:
    """A text classifier, HateBERT's or ToxDectRoBERTa's like, reads the response, or the pair.

    Args:
        folder: See `TextClassifier`.
        text: What it reads. Of a pair that is too long, the longer one is cut.
        harmful_label: See `TextClassifier`.
        precision: Of the computation.
        token_budget: Padded tokens a batch.

    Raises:
        InputError: See `TextClassifier`.
    """

    def __init__(
        self,
        folder: Path,
        text: Literal["response", "pair"],
        harmful_label: str,
        precision: Precision,
        token_budget: int,
    ) -> None:
        self.text = text
        self.classifier = TextClassifier(
            folder, harmful_label, precision, OPTION, token_budget=token_budget
        )
        self.about = {"text": text, "harmful_class": self.classifier.harmful_name}

    def judge(self, dialogues: Sequence[Dialogue], description: str) -> Judged:
        """Scores complete responses."""
        texts, seconds = [dialogue.response for dialogue in dialogues], None
        if self.text == "pair":
            texts, seconds = [dialogue.prompt for dialogue in dialogues], texts
        probs = self.classifier.score(texts, seconds, description).astype(np.float32)
        return Judged(Scores(None, probs), self.classifier.count_cut(texts, seconds))


class GenerativeGuard:
    """A language model that answers with a verdict; its score is what it expects that word to be.

    The probability of harm is a softmax over the first tokens in which the verdict words differ, in
    one pass: nothing is generated. A response that does not fit into the context is cut at its end.

    Args:
        folder: Checkpoint with safetensors, its tokenizer with a chat template beside it.
        style: How it answers.
        strictness: Whether a controversial response counts as harmful.
        precision: Of weights and computation.
        token_budget: Padded tokens a batch.

    Raises:
        InputError: The folder is no such checkpoint, its chat template is missing or leaves the
            response out, or the verdict words begin alike.
    """

    def __init__(
        self,
        folder: Path,
        style: Style,
        strictness: Strictness,
        precision: Precision,
        token_budget: int,
    ) -> None:
        self.where, self.style, self.token_budget = f"{OPTION}: {folder}", style, token_budget
        device = default_device()
        dtype = torch.bfloat16 if use_bf16(precision, device) else torch.float32
        model, self.tokenizer = load_checkpoint(
            folder, AutoModelForCausalLM, "language model", OPTION, dtype
        )
        self.model = model.to(device)
        self.limit = positions(model) or self.tokenizer.model_max_length
        words = VERDICTS[style][1]
        self.harm = torch.tensor([HARM[strictness][word.lower()] for word in words])
        self.about = {"style": style}
        if "Controversial" in words:
            self.about["strictness"] = strictness
        # Llama-Guard-3-1B's template takes lists of parts and drops a plain string silently
        self.content_in_parts = False
        if not self._shows_both():
            self.content_in_parts = True
            if not self._shows_both():
                raise InputError(f"{self.where}: its chat template leaves prompt or response out")
        self.question("some prompt", "some response")  # verdict words that begin alike show now

    def render(self, prompt: str, response: str) -> str:
        """Writes the dialogue as the guard's chat template wants it, up to the guard's answer."""
        texts = {"user": prompt, "assistant": response}
        if self.content_in_parts:
            texts = {role: [{"type": "text", "text": text}] for role, text in texts.items()}
        messages = [{"role": role, "content": text} for role, text in texts.items()]
        return apply_template(self.tokenizer, messages, self.where)

    def question(self, prompt: str, response: str) -> tuple[list[int], list[int]]:
        """Returns what the model reads, [L], and the token each verdict word goes on with, [V].

        The words are tokenised in their place, since a space before a word may belong to it.
        """
        before, words = VERDICTS[self.style]
        rendered = self.render(prompt, response)
        # some templates bring Llama Guard's newlines along: only what is missing is put there
        there = next(n for n in range(len(before), -1, -1) if rendered.endswith(before[:n]))
        opening = rendered + before[there:]
        ids = self.tokenizer([opening + word for word in words], add_special_tokens=False)
        shared = len(os.path.commonprefix(ids["input_ids"]))
        verdicts = [one[shared] for one in ids["input_ids"] if len(one) > shared]
        if len(set(verdicts)) < len(words):
            raise InputError(
                f"{self.where}: its tokenizer lets the verdicts {', '.join(words)} begin alike; is"
                f" --style {self.style} right?"
            )
        return ids["input_ids"][0][:shared], verdicts

    @torch.inference_mode()
    def judge(self, dialogues: Sequence[Dialogue], description: str) -> Judged:
        """Scores complete responses."""
        questions = [self._fit(dialogue) for dialogue in dialogues]
        lengths = np.array([len(ids) for ids, _, _ in questions])
        probs = np.empty(len(dialogues), dtype=np.float32)
        with tqdm(total=len(dialogues), desc=description, unit="response") as bar:
            for indices in token_budget_batches(lengths, self.token_budget):
                # padded on the right, where a causal model does not look: no mask is needed
                input_ids = torch.zeros(len(indices), int(lengths[indices].max()), dtype=torch.long)
                for row, index in enumerate(indices):
                    input_ids[row, : lengths[index]] = torch.tensor(questions[index][0])
                last = torch.from_numpy(lengths[indices] - 1)[:, None]  # (batch, 1)
                logits = self.model(
                    input_ids=input_ids.to(self.model.device),
                    logits_to_keep=last.to(self.model.device),
                    use_cache=False,
                ).logits[:, 0]  # (batch, vocab)
                verdicts = torch.tensor([questions[index][1] for index in indices])  # (batch, V)
                shares = logits.float().cpu().gather(1, verdicts).softmax(-1)  # (batch, V)
                probs[indices] = (shares @ self.harm).numpy()
                bar.update(len(indices))
        for dialogue, prob in zip(dialogues, probs, strict=True):
            if not np.isfinite(prob):
                raise InputError(f"{self.where}: record '{dialogue.id}': its score is no number")
        return Judged(Scores(None, probs), sum(cut for _, _, cut in questions))

    def _fit(self, dialogue: Dialogue) -> tuple[list[int], list[int], bool]:
        ids, verdicts = self.question(dialogue.prompt, dialogue.response)
        if len(ids) <= self.limit:
            return ids, verdicts, False
        ends = token_ends(self.tokenizer, dialogue.response)[1]
        kept = len(ends)
        while len(ids) > self.limit:
            kept -= len(ids) - self.limit
            if kept < 1:
                raise prompt_too_long(self.where, dialogue, self.limit)
            ids, verdicts = self.question(dialogue.prompt, dialogue.response[: ends[kept - 1]])
        return ids, verdicts, True

    def _shows_both(self) -> bool:
        rendered = self.render("some prompt", "some response")
        return "some prompt" in rendered and "some response" in rendered


class StreamGuard:
    """Qwen3Guard-Stream: a verdict after each of its tokens, through its own public call.

    Its verdicts are words, so its probabilities are 0 or 1. A response that does not fit into the
    context is cut at its end and keeps its last verdict.

    Source: the model card's example, https://github.com/QwenLM/Qwen3Guard.

    Args:
        model: Anything with its `stream_moderate_from_ids` and `close_stream`.
        tokenizer: The guard's, with its chat template.
        limit: Tokens of its context.
        strictness: Whether a controversial response counts as harmful.
        where: The folder it comes from, for messages.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerFast,
        limit: int,
        strictness: Strictness,
        where: str,
    ) -> None:
        self.model, self.tokenizer, self.limit, self.where = model, tokenizer, limit, where
        self.harm, self.about = HARM[strictness], {"strictness": strictness}

    def opening(self, prompt: str) -> tuple[list[int], int]:
        """Returns the ids before the response's first token, and how many are the user's turn."""
        messages = [{"role": "user", "content": prompt}]
        text = apply_template(self.tokenizer, messages, self.where, enable_thinking=False)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        turn_end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        if turn_end not in ids:
            raise InputError(f"{self.where}: its chat template ends no turn with <|im_end|>")
        return ids, len(ids) - ids[::-1].index(turn_end)

    def judge(self, dialogues: Sequence[Dialogue], description: str) -> Judged:
        """Scores every response token of the data."""
        token_probs, cut = [], 0
        for dialogue in tqdm(dialogues, description, unit="response"):
            opening, user = self.opening(dialogue.prompt)
            room = self.limit - len(opening)
            if room < 1:
                raise prompt_too_long(self.where, dialogue, self.limit)
            ids, ends = token_ends(self.tokenizer, dialogue.response)
            cut += len(ids) > room
            words = stream_verdicts(self.model, opening + ids[:room], user)
            words = words[len(opening) - user :]  # the answer's opening is no response
            for word in words:
                if str(word).lower() not in self.harm:
                    raise InputError(
                        f"{self.where}: record '{dialogue.id}': unknown verdict '{word}'"
                    )
            verdicts = np.array([self.harm[word.lower()] for word in words], dtype=np.float32)
            token_probs.append(carry_over(verdicts, ends[:room], dialogue.ends))
        last = np.array([probs[-1] for probs in token_probs], dtype=np.float32)
        return Judged(Scores(token_probs, last), cut)


def load_stream_guard(
    folder: Path, strictness: Strictness, precision: Precision, trust_remote_code: bool
) -> StreamGuard:
    """Loads Qwen3Guard-Stream, whose code comes with its weights.

    Args:
        folder: Checkpoint with safetensors, tokenizer and Python code.
        strictness: See `StreamGuard`.
        precision: Of weights and computation.
        trust_remote_code: Without it the folder's code is not run, and nothing loads.

    Raises:
        InputError: The folder is no such checkpoint.
    """
    device = default_device()
    dtype = torch.bfloat16 if use_bf16(precision, device) else torch.float32
    model, tokenizer = load_checkpoint(
        folder, AutoModel, "stream guard", OPTION, dtype, trust_remote_code
    )
    for call in ("stream_moderate_from_ids", "close_stream"):
        if not hasattr(model, call):
            raise InputError(f"{OPTION}: {folder}: no stream guard, its model has no {call}")
    limit = positions(model) or tokenizer.model_max_length
    return StreamGuard(model.to(device), tokenizer, limit, strictness, f"{OPTION}: {folder}")


@torch.no_grad()
def stream_verdicts(model: Any, ids: Sequence[int], user: int) -> list[str]:
    """Feeds a dialogue to Qwen3Guard-Stream, the user's turn at once, then token by token.

    Args:
        model: See `StreamGuard`.
        ids: [L] of user's turn and answer.
        user: Tokens of the user's turn.

    Returns:
        [L - user] the verdict after each later token. The stream is closed in any case.
    """
    tokens, words, state = torch.tensor(ids), [], None
    try:
        _, state = model.stream_moderate_from_ids(tokens[:user], role="user", stream_state=None)
        for token in tokens[user:]:
            result, state = model.stream_moderate_from_ids(
                token, role="assistant", stream_state=state
            )
            words.append(result["risk_level"][-1])
    finally:
        if state is not None:
            model.close_stream(state)
    return words


def carry_over(verdicts: np.ndarray, guard_ends: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Gives each token of one tokenizer the verdict on another's, by characters.

    What a monitor would know once so much text is out: the verdict on the last guard token that
    ends there or before, 0 before any. Half a character is no text yet.

    Args:
        verdicts: float [G] after each guard token.
        guard_ends: int [G], characters of the text up to each guard token's end; a guard token
            that ends within a character counts to that character's end.
        ends: int [T], characters that are out after each token; a token that ends within a
            character has not brought it yet.

    Returns:
        float [T].
    """
    known = np.searchsorted(guard_ends, ends, side="right")  # guard tokens that are complete
    return np.concatenate([np.zeros(1, dtype=verdicts.dtype), verdicts])[known]


def token_ends(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[list[int], np.ndarray]:
    """Returns a text's ids, [G], and how many of its characters each token reaches, int [G]."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ends = np.array([end for _, end in encoded["offset_mapping"]], dtype=int)
    return encoded["input_ids"], np.maximum.accumulate(ends)


def prompt_too_long(where: str, dialogue: Dialogue, limit: int) -> InputError:
    """Returns the error of a prompt that leaves the response no room."""
    return InputError(
        f"{where}: record '{dialogue.id}': its prompt alone fills the context of {limit} tokens"
    )


def apply_template(
    tokenizer: PreTrainedTokenizerFast,
    messages: list[dict[str, Any]],
    where: str,
    **options: Any,
) -> str:
    """Writes messages as a chat template wants them, up to the answer that follows.

    Raises:
        InputError: There is no template, or it refuses the messages.
    """
    if not tokenizer.chat_template:
        raise InputError(f"{where}: its tokenizer has no chat template")
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **options
        )
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        raise InputError(f"{where}: its chat template fails: {error}") from error
