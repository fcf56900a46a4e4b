"""Loading a tokenizer and telling two of them apart."""

import hashlib
import json
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from utils.files import InputError


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
