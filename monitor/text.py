"""Tokens of a text that still grows, given out once they are settled: no later text changes them.

A byte-level BPE tokenizer splits text by a regular expression and encodes each part by itself.
Where every such expression we know splits, whatever comes later, the tokens before that place are
final, and the text after it gets the tokens that it would get in the whole. So a monitor computes
each token once and takes none back. The price is a lag: one unfinished word; a few dozen characters
in a very long one; and a whole run of signs, emoji or white space, which the text after it settles.
A run is cut after `LONGEST_RUN` characters, where its tokens may differ from the whole's.

The folded reading (`data.folding`) comes before the tokenizer; places are always those of the text
as it was fed.
"""

import codecs
import json
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import accumulate
from os.path import commonprefix

from tokenizers import Tokenizer

from data.folding import Folding, fold
from data.options import Reading
from data.tokenization import BYTE_OF, TextEncoder
from utils.files import InputError

# GPT-2's expression, which ByteLevel brings along, needs no entry here
KNOWN_PATTERNS = {  # Qwen2, Qwen2.5 and Qwen3; GPT-4 and Llama 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+"
    r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}", r"\p{N}{1,3}")
}
LONG_WORD = 64  # characters from which on a word is settled piece by piece
LONG_WORD_STEP = 16  # and how many further characters it takes to try again

JAMO = (("\u1100", "\u11ff"), ("\ua960", "\ua97f"), ("\ud7b0", "\ud7ff"))
GREEDY = ("lstrip", "rstrip", "single_word")  # let an added word take from its neighbours
# kinds of characters
LETTER, NUMBER, SIGN, MARK, SPACE, NEWLINE, INVISIBLE, OTHER = "LNSM nix"
LONGEST_RUN = 8192  # characters that may wait for what settles them
SLICE = 128  # characters of a long piece looked at together
BLOCK = 4096  # and read together: what is not wanted any more is not read


@lru_cache(maxsize=1 << 16)
def kind(character: str) -> str:
    """Returns what a splitting expression takes a character for.

    INVISIBLE are control and format characters, rarer white space, and marks that NFC leaves alone;
    they end a word as a space does. MARK are marks that NFC may join to the letter before them.
    OTHER settles nothing: characters that NFC takes apart, jamo, code points without a character.
    """
    if character in "\r\n":
        return NEWLINE
    if character in " \t\u3000":
        return SPACE
    is_jamo = any(first <= character <= last for first, last in JAMO)
    if is_jamo or not unicodedata.is_normalized("NFC", character):
        return OTHER
    category = unicodedata.category(character)
    if category in ("Cc", "Cf") or category[0] == "Z":
        return INVISIBLE
    if category[0] == "M":
        joins = unicodedata.combining(character) or character in _joining()
        return MARK if joins else INVISIBLE
    return {"L": LETTER, "N": NUMBER, "P": SIGN, "S": SIGN}.get(category[0], OTHER)


@cache
def _joining() -> frozenset[str]:
    """Characters that NFC joins to the one before them."""
    pairs = (unicodedata.decomposition(chr(code)).split() for code in range(sys.maxunicode + 1))
    return frozenset(
        chr(int(pair[1], 16)) for pair in pairs if len(pair) == 2 and pair[0][0] != "<"
    )


def splits(left: str, right: str) -> bool:
    """Says whether every known expression splits between two characters, whatever follows.

    Never after white space: how it is split depends on what comes next.
    """
    before, after = kind(left), kind(right)
    if before not in (LETTER, NUMBER, SIGN, MARK):
        return False
    if after == SPACE:
        return True
    if after in (NEWLINE, INVISIBLE):  # signs take newlines along, and may take the others
        return before in (LETTER, NUMBER)
    if before == MARK:  # no letter and no digit for these expressions
        before = SIGN
    # a letter may take along one sign before it
    return after in (LETTER, NUMBER, SIGN) and before != after and (before, after) != (SIGN, LETTER)


def join_surrogates(text: str) -> str:
    """Joins halves of surrogate pairs; one without its other half becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class GrowingText:
    """Turns pieces of a text into settled token ids; text after the first `most` is not encoded."""

    def __init__(self, splitter: "Splitter", most: int = sys.maxsize) -> None:
        self._splitter, self._wanted = splitter, most
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._half = ""  # of a surrogate pair
        self._folding = Folding() if splitter.reading == "folded" else None
        self._length = 0  # characters fed
        self._tail = ""  # what is not settled, as it is read
        self._places: list[int] = []  # where in the text its characters come from
        self.settled = 0
        """Characters whose tokens have been given out."""

    def feed(self, piece: str | bytes) -> tuple[str, list[int], list[int]]:
        """Adds a piece, which may split words, surrogate pairs or, as UTF-8 bytes, characters.

        Returns:
            The text that was added, with U+FFFD for invalid characters and those that the tokenizer
            lacks; the ids that are settled now; and where in the whole text each of them begins.
        """
        text = self._characters(piece)
        ids, starts = [], []
        for begin in range(0, len(text), BLOCK):
            if self._wanted <= 0:
                break
            read, places = self._read(text[begin : begin + BLOCK])
            self._settle(read, places, ids, starts)
        return self._splitter.readable(text), ids, starts

    def _settle(self, read: str, places: Sequence[int], ids: list[int], starts: list[int]) -> None:
        place = 0
        while place < len(read) and self._wanted > 0:
            before = len(self._tail)
            end = place + min(SLICE, LONGEST_RUN + 1 - before)
            self._tail += read[place:end]
            self._places += places[place:end]
            place = end
            settled = self._last_split(before)
            if not settled and len(self._tail) > LONGEST_RUN:
                settled = LONGEST_RUN
            some, their = self._take(settled)
            ids.extend(some)
            starts.extend(their)

    def finish(self) -> tuple[str, list[int], list[int]]:
        """Ends the text; returns as `feed`."""
        text = self._characters("", final=True)
        read, places = self._read(text, final=True)
        if self._wanted <= 0:
            return text, [], []
        self._tail += read
        self._places += places
        ids, starts = self._take(len(self._tail))
        self.settled = self._length
        return text, ids, starts

    def _read(self, text: str, final: bool = False) -> tuple[str, Sequence[int]]:
        """Returns what is to be encoded of further text, and where its characters come from."""
        start, self._length = self._length, self._length + len(text)
        if self._folding is None:
            return self._splitter.readable(text), range(start, self._length)
        read, places = self._folding.feed(text)
        if final:
            rest, their = self._folding.finish()
            read, places = read + rest, places + their
        return self._splitter.readable(read), places

    def _characters(self, piece: str | bytes, final: bool = False) -> str:
        if isinstance(piece, bytes | bytearray):
            text = self._bytes.decode(piece)
        else:  # an incomplete character before it stays incomplete
            text = self._bytes.decode(b"", final=True) + piece
        if self._half or not text.isascii():
            text, self._half = self._half + text, ""
            if text and "\ud800" <= text[-1] <= "\udbff" and not final:
                text, self._half = text[:-1], text[-1]
            text = join_surrogates(text)
        return text

    def _take(self, count: int) -> tuple[list[int], list[int]]:
        """Encodes the first characters of the tail and takes them off."""
        if not count:
            return [], []
        encoding = self._splitter.encode(self._tail[:count])
        starts = [self._places[start] for start, _ in encoding.offsets]
        self.settled = self._places[count - 1] + 1
        self._tail, self._places = self._tail[count:], self._places[count:]
        if self._places:  # one character may be read as several
            self.settled = min(self.settled, self._places[0])
        self._wanted -= len(starts)
        return encoding.ids, starts

    def _last_split(self, before: int) -> int:
        """Finds how much of the tail is settled, of which `before` characters were there before."""
        tail = self._tail
        for place in range(len(tail) - 1, max(before, 1) - 1, -1):
            if self._splitter.splits_at(tail, place):
                return place
        grown = len(tail) // LONG_WORD_STEP > before // LONG_WORD_STEP
        if len(tail) >= LONG_WORD and grown and not self._splitter.added_in(tail):
            return self._splitter.settled_of_word(tail)
        return 0


class GrowingIds:
    """Turns token ids into the text they spell; the first `most` of them are settled at once.

    A control token counts as the text that it stands for, as if that had been fed.
    """

    def __init__(self, splitter: "Splitter", most: int = sys.maxsize) -> None:
        self._splitter, self._wanted = splitter, most
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.settled = 0
        """Characters spelled so far, without an incomplete one at the end."""

    def feed(self, ids: Sequence[int]) -> tuple[str, list[int], list[int]]:
        """Adds ids; returns as `GrowingText.feed`, a control token's replaced by its text's.

        Raises:
            InputError: An id that the model does not have.
        """
        spelled = self._splitter.spell(ids)
        ids, parts, starts = [token for token, _ in spelled], [], []
        for _, raw in spelled:
            starts.append(self.settled)
            parts.append(self._decoder.decode(raw))
            self.settled += len(parts[-1])
        ids, starts = ids[: self._wanted], starts[: self._wanted]
        self._wanted -= len(ids)
        return "".join(parts), ids, starts

    def finish(self) -> tuple[str, list[int], list[int]]:
        """Ends the text; returns as `feed`."""
        text = self._decoder.decode(b"", final=True)
        self.settled += len(text)
        return text, [], []


class FoldedIds(GrowingText):
    """Turns token ids into those of the text they spell as the folded reading reads it."""

    def __init__(self, splitter: "Splitter", most: int = sys.maxsize) -> None:
        super().__init__(splitter, most)
        self._spelled = GrowingIds(splitter)

    def feed(self, ids: Sequence[int]) -> tuple[str, list[int], list[int]]:
        """Adds ids; returns as `GrowingText.feed`.

        Raises:
            InputError: An id that the model does not have.
        """
        return super().feed(self._spelled.feed(ids)[0])

    def finish(self) -> tuple[str, list[int], list[int]]:
        """Ends the text; returns as `feed`."""
        text, ids, starts = super().feed(self._spelled.finish()[0])
        more, more_ids, more_starts = super().finish()
        return text + more, ids + more_ids, starts + more_starts


class Splitter:
    """Knows what settles the tokens of a byte-level BPE tokenizer.

    Args:
        vocab_size: Rows of the model's embedding matrix; default the tokenizer's own size.
        reading: How text is read before it is split.

    Raises:
        InputError: The tokenizer splits text in a way this module does not know.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int = 0, reading: Reading = "plain"
    ) -> None:
        self.reading = reading
        self._encoder = TextEncoder(tokenizer)
        self.encode, self.readable = self._encoder.encode, self._encoder.readable
        self._tokenizer = self._encoder.tokenizer
        state = json.loads(self._tokenizer.to_str())
        self._vocab_size = vocab_size or tokenizer.get_vocab_size()
        words = [token for token in state["added_tokens"] if not token["special"]]
        if reason := _unknown(state, words):
            raise InputError(
                f"tokenizer.json: field '{reason}': no text can be followed with such a tokenizer"
            )
        self._added = {token["id"]: token["content"] for token in words}
        self._content = {
            token: self.encode(text).ids for token, text in self._encoder.control.items()
        }
        self.normalizes = state["normalizer"] is not None
        by_length = sorted(state["model"]["vocab"], key=len, reverse=True)
        self.longest = next((len(token) for token in by_length if _in_word(token)), 1)
        self.merges_alone = not state["model"].get("ignore_merges")

    def read(self, text: str) -> str:
        """Returns a whole text as it is read."""
        return fold(text)[0] if self.reading == "folded" else text

    def last_ids(self, text: str, count: int) -> list[int]:
        """Returns the last `count` ids of a text without encoding much more than they need."""
        text = self.read(text)
        for characters in (8, 64):  # an id; text that has fewer ids than that loses some in front
            start = max(0, len(text) - characters * count)
            places = range(start, min(start + LONGEST_RUN, len(text)))
            first = next((at for at in places if not at or self.splits_at(text, at)), start)
            ids = self.encode(text[first:]).ids
            if not start or len(ids) >= count:
                break
        return ids[-count:]

    def spell(self, ids: Sequence[int]) -> list[tuple[int, bytes]]:
        """Returns ids with the bytes that each stands for, a control token's as its text's ids.

        Ids that only fill up the embedding matrix stand for nothing.

        Raises:
            InputError: The model has no such id.
        """
        spelled = []
        ids = [one for token in ids for one in self._content.get(token, [token])]
        for token in ids:
            if not 0 <= token < self._vocab_size:
                raise InputError(
                    f"token id {token}: the model has ids from 0 to {self._vocab_size - 1}"
                )
            if token in self._added:
                raw = self._added[token].encode()
            else:
                raw = bytes(BYTE_OF[one] for one in self._tokenizer.id_to_token(token) or "")
            spelled.append((token, raw))
        return spelled

    def splits_at(self, text: str, place: int) -> bool:
        """Says whether every known expression splits at a place and no added word spans it."""
        return splits(text[place - 1], text[place]) and not self._in_added(text, place)

    def added_in(self, text: str) -> bool:
        """Says whether an added word or the beginning of one may be in a text."""
        return any(word[0] in text for word in self._added.values())

    def _in_added(self, text: str, place: int) -> bool:
        """Says whether a place may lie inside an added word, complete or not yet."""
        for word in self._added.values():
            if word[0] not in text[max(0, place - len(word) + 1) : place]:
                continue
            for part in range(1, min(len(word), place + 1)):
                rest = text[place : place + len(word) - part]
                if text.startswith(word[:part], place - part) and word.startswith(rest, part):
                    return True
        return False

    def settled_of_word(self, tail: str) -> int:
        """Finds how many characters are settled of a long word, which may go on.

        Merges never cross a boundary of the final tokens, so the tokens before such a boundary are
        those of the text before it alone. The whole word's tokens have a boundary somewhere in the
        last bytes of `tail`, no further back than the longest token. So what all encodings that end
        there begin with is settled. None is, where `tail` is no word of letters after at most one
        sign.
        """
        if not self.merges_alone or kind(tail[0]) not in (LETTER, SIGN, SPACE):
            return 0
        if not all(kind(character) == LETTER for character in tail[1:]):
            return 0
        if self.normalizes and not unicodedata.is_normalized("NFC", tail):
            return 0
        *first, (word, (start, _)) = self._tokenizer.pre_tokenizer.pre_tokenize_str(tail)
        if len(first) > 1:
            return 0
        model = self._tokenizer.model
        encodings = [
            [token.value for token in model.tokenize(word[:end])]
            for end in range(max(1, len(word) - self.longest + 1), len(word) + 1)
        ]
        # a word is spelled in the byte-level alphabet, whose characters stand for bytes
        boundaries = set(accumulate(map(len, commonprefix(encodings))))
        sizes = accumulate(len(character.encode()) for character in tail[start:])
        through = [count for count, size in enumerate(sizes, start=1) if size in boundaries]
        return start + (through[-1] if through else 0)


def _in_word(token: str) -> bool:
    """Says whether a token may lie in a word, as `Splitter.settled_of_word` knows words."""
    spelled = bytes(BYTE_OF.get(letter, ord(" ")) for letter in token)
    return all(kind(character) == LETTER for character in spelled.decode("utf-8", "ignore")[1:])


def _unknown(state: dict, words: list[dict]) -> str:
    """Returns the field of a tokenizer.json that `splits` does not cover, or ""."""
    model, normalizer = state["model"], state["normalizer"] or {"type": "NFC"}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        return "model"
    if model.get("dropout"):
        return "model.dropout"
    if normalizer != {"type": "NFC"}:
        return "normalizer"
    if any(word[flag] for word in words for flag in GREEDY):
        return "added_tokens"
    parts = state["pre_tokenizer"] or {"type": None}
    *before, last = parts["pretokenizers"] if parts["type"] == "Sequence" else [parts]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return "pre_tokenizer"
    splits_words = last["use_regex"] or any(part["type"] == "Split" for part in before)
    return "" if splits_words and all(map(_is_known, before)) else "pre_tokenizer"


def _is_known(part: dict) -> bool:
    """Says whether `splits` covers a part of a pre-tokenizer that stands before ByteLevel."""
    return part["type"] == "Digits" or (
        part["type"] == "Split"
        and part["pattern"].get("Regex") in KNOWN_PATTERNS
        and part["behavior"] == "Isolated"
        and not part["invert"]
    )
