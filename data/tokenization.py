"""Loading a tokenizer, telling two of them apart, and encoding what people and models write."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast

from utils.files import InputError

# the byte-level alphabet: printable bytes stand for themselves, the others for U+0100 and on
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + number): byte for number, byte in enumerate(_OTHERS)
}


class TextEncoder:
    """Encodes content: prompts and responses are text, whatever they spell.

    What spells a control token, such as "<|im_end|>", gets the ids of its letters. Control tokens
    are the special tokens and all others that are looked for before normalisation, as Qwen's
    "<tool_call>"; added words stay words. A character with a byte that a byte-level vocabulary
    lacks counts as U+FFFD: by themselves tokenizers drop it without a word.

    The encoder is a copy: what becomes of the tokenizer's padding and truncation does not reach it.

    Args:
        tokenizer: The fast tokenizer behind a model's.

    Raises:
        InputError: The vocabulary lacks the bytes of U+FFFD, too.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        added = self.tokenizer.get_added_tokens_decoder().items()
        control = {token: about for token, about in added if about.special or not about.normalized}
        for about in control.values():
            about.special = True
        self.tokenizer.add_special_tokens(list(control.values()))
        self.tokenizer.encode_special_tokens = True  # lost in to_str and in pickles
        self.control = {token: about.content for token, about in control.items()}
        """What each control token's id stands for."""
        byte_level = "ByteLevel(" in str(self.tokenizer.pre_tokenizer)
        known = self.tokenizer.get_vocab() if byte_level else BYTE_OF
        self._lacking = bytes(byte for letter, byte in BYTE_OF.items() if letter not in known)
        if self._has_lacking("\ufffd"):
            raise InputError("tokenizer.json: field 'model.vocab': lacks the bytes of U+FFFD")

    def _has_lacking(self, text: str) -> bool:
        raw = text.encode("utf-8", "surrogatepass")
        return len(raw.translate(None, self._lacking)) < len(raw)

    def readable(self, text: str) -> str:
        """Returns a text with U+FFFD for each character that the vocabulary cannot spell."""
        if not self._has_lacking(text):
            return text
        return "".join("\ufffd" if self._has_lacking(one) else one for one in text)

    def encode(self, text: str) -> Encoding:
        """Encodes one text, without the tokens that open and end a sequence."""
        return self.tokenizer.encode(self.readable(text), add_special_tokens=False)

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """Encodes many texts like `encode`."""
        texts = [self.readable(text) for text in texts]
        return self.tokenizer.encode_batch(texts, add_special_tokens=False)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Loads the tokenizer of a model or tokenizer folder, exactly as its tokenizer.json says.

    AutoTokenizer would not do: beside a Qwen2 config it makes a Qwen2 tokenizer of any
    tokenizer.json (transformers 5).

    Raises:
        InputError: The folder is missing or holds no readable tokenizer.json.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder (a tokenizer was expected)")
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: holds no tokenizer.json")
    try:
        # the library reports a broken tokenizer.json as a bare Exception
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{folder}: tokenizer cannot be loaded: {reason}") from error


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Returns a SHA-256 of all that decides which ids a text gets.

    Two tokenizers with one fingerprint turn every text into the same ids. Padding and truncation
    settings do not count; special tokens do, in the order of their ids.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {
        "model": state["model"],
        "normalizer": state["normalizer"],
        "pre_tokenizer": state["pre_tokenizer"],
        "added_tokens": sorted((token["id"], token["content"]) for token in state["added_tokens"]),
        "opening": leading_ids(tokenizer),
        "content": "text",  # until this stood here, a record could spell control tokens
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def leading_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Returns the ids a sequence of this tokenizer opens with: [BOS], [CLS], or nothing.

    What the tokenizer itself puts before a text decides, not whether such a token exists: SmolLM2
    names a BOS and never adds it, ModernBERT opens with [CLS].
    """
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    opening = []
    for token in full:
        if token == bare[0] or token not in (tokenizer.bos_token_id, tokenizer.cls_token_id):
            break
        opening.append(token)
    return opening
