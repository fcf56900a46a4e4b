"""A language model that answers with a verdict, as Llama Guard and Qwen3Guard-Gen do."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from data.batches import token_budget_batches
from evaluation.guards.dialogue import HARM, Dialogue, Judged, load_chat, token_ends
from evaluation.options import Strictness, Style
from evaluation.predict import Scores
from utils.files import InputError
from utils.options import Precision

# What a generative guard writes before its verdict, and the words it chooses from.
# Source: the model cards of Llama-Guard-3-8B and Qwen3Guard-Gen.
VERDICTS: dict[Style, tuple[str, tuple[str, ...]]] = {
    "llama-guard": ("\n\n", ("safe", "unsafe")),
    "qwen3guard-gen": ("Safety: ", ("Safe", "Unsafe", "Controversial")),
}


class GenerativeGuard:
    """A language model that answers with a verdict; its score is the verdict's probability of harm.

    That is a softmax over the first tokens in which the verdict words differ, in one pass: nothing
    is generated. A response that does not fit into the context is cut at its end.

    Args:
        folder: Checkpoint with safetensors, its tokenizer with a chat template beside it.
        style: How it answers.
        strictness: Whether a controversial response counts as harmful.
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
        self.style, self.token_budget = style, token_budget
        self.model, self.chat, self.limit = load_chat(
            folder, AutoModelForCausalLM, "language model", precision
        )
        self.where = self.chat.where
        words = VERDICTS[style][1]
        self.harm = torch.tensor([HARM[strictness][word.lower()] for word in words])
        self.about = {"style": style}
        if "Controversial" in words:
            self.about["strictness"] = strictness
        # Llama-Guard-3-1B's template takes lists of parts and drops a plain string silently
        for in_parts in (False, True):
            self.content_in_parts = in_parts
            rendered = self.render("some prompt", "some response")
            if "some prompt" in rendered and "some response" in rendered:
                break
        else:
            raise InputError(f"{self.where}: its chat template leaves prompt or response out")
        self.question("some prompt", "some response")  # verdict words that begin alike show now

    def render(self, prompt: str, response: str) -> str:
        """Fills in the guard's chat template, up to the guard's answer."""
        turns = [("user", prompt), ("assistant", response)]
        return self.chat.render(turns, self.content_in_parts)

    def question(self, prompt: str, response: str) -> tuple[list[int], list[int]]:
        """Returns what the model reads, [L], and the token each verdict word goes on with, [V].

        The words are tokenised in their place, since a space before a word may belong to it.
        """
        before, words = VERDICTS[self.style]
        rendered = self.render(prompt, response)
        # some templates end with Llama Guard's newlines: only the missing ones are added
        there = next(n for n in range(len(before), -1, -1) if rendered.endswith(before[:n]))
        opening = rendered + before[there:]
        ids = [self.chat.encode(opening + word) for word in words]
        shared = len(os.path.commonprefix(ids))
        verdicts = [one[shared] for one in ids if len(one) > shared]
        if len(set(verdicts)) < len(words):
            raise InputError(
                f"{self.where}: its tokenizer lets the verdicts {', '.join(words)} begin alike; is"
                f" --style {self.style} right?"
            )
        return ids[0][:shared], verdicts

    @torch.inference_mode()
    def judge(self, dialogues: Sequence[Dialogue], description: str) -> Judged:
        """Scores complete responses."""
        questions = [self._fit(dialogue) for dialogue in dialogues]
        lengths = np.array([len(ids) for ids, _, _ in questions])
        probs = np.empty(len(dialogues), dtype=np.float32)
        with tqdm(total=len(dialogues), desc=description, unit="response") as bar:
            for indices in token_budget_batches(lengths, self.token_budget):
                # padded on the right, where a causal model does not look: no mask is needed
                rows = [torch.tensor(questions[index][0]) for index in indices]
                input_ids = pad_sequence(rows, batch_first=True)  # (batch, seq_len)
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
        ends = token_ends(self.chat.encoder, dialogue.response)[1]
        kept = len(ends)
        while len(ids) > self.limit:
            kept -= len(ids) - self.limit
            if kept < 1:
                raise self.chat.prompt_too_long(dialogue.id, self.limit)
            ids, verdicts = self.question(dialogue.prompt, dialogue.response[: ends[kept - 1]])
        return ids, verdicts, True
