"""Text that hides: what people write so that a filter does not read it, for measuring and training.

Each way spells the words of a text anew and leaves the text readable for people.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import get_args

import regex

from data.folding import LEET, SEPARATORS, homoglyphs
from data.options import Hiding

WORD = regex.compile(r"[A-Za-z]+")
ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff"
MARKS = "".join(map(chr, range(0x300, 0x370)))


def _inverted(plain: dict[str, str]) -> dict[str, str]:
    """Returns by letter all characters that stand for it."""
    found: dict[str, str] = {}
    for character, letter in plain.items():
        found[letter] = found.get(letter, "") + character
    return found


DIGITS = _inverted(LEET)


@cache
def _doubles() -> dict[str, str]:
    return _inverted(homoglyphs())


def _zero_width(word: str, random: Random) -> list[str]:
    return [letter + random.choice(ZERO_WIDTH) for letter in word]


def _homoglyphs(word: str, random: Random) -> list[str]:
    return [random.choice(_doubles().get(letter, letter)) for letter in word]


def _marks(word: str, random: Random) -> list[str]:
    return [letter + random.choice(MARKS) for letter in word]


def _spacing(word: str, random: Random) -> list[str]:
    if len(word) == 1:
        return [word]
    separator = random.choice(" " + SEPARATORS)
    beside = " " if separator == " " else ""  # so that people see where the word ends
    return [
        beside + word[0],
        *(separator + letter for letter in word[1:-1]),
        separator + word[-1] + beside,
    ]


def _leetspeak(word: str, random: Random) -> list[str]:
    return [random.choice(DIGITS.get(letter.lower(), letter)) for letter in word]


WAYS: dict[Hiding, Callable[[str, Random], list[str]]] = {
    "zero-width": _zero_width,  # a character that is not seen after each letter
    "homoglyphs": _homoglyphs,  # letters of other scripts
    "marks": _marks,  # a combining mark upon each letter
    "spacing": _spacing,  # spaces, dots, hyphens, underscores or asterisks between letters
    "leetspeak": _leetspeak,  # digits and signs for letters
}
assert tuple(WAYS) == get_args(Hiding)


def hide(text: str, way: Hiding, share: float, random: Random) -> tuple[str, list[int]]:
    """Spells the words of a text so that they hide.

    Args:
        text: The text.
        way: One of `WAYS`.
        share: Share of the words in Latin letters that are spelled anew, 0 to 1.
        random: Draws them, and their letters.

    Returns:
        The text, and where in the original each of its characters comes from.
    """
    hidden, places, end = [], [], 0
    for match in WORD.finditer(text):
        if random.random() >= share:
            continue
        start = match.start()
        hidden.append(text[end:start])
        places += range(end, start)
        for place, letters in enumerate(WAYS[way](match[0], random), start=start):
            hidden.append(letters)
            places += [place] * len(letters)
        end = match.end()
    hidden.append(text[end:])
    places += range(end, len(text))
    return "".join(hidden), places


@dataclass(frozen=True)
class Disguise:
    """Hides responses.

    Attributes:
        ways: Each response hides in one of these.
        records: Share of the responses that hide.
        words: Share of their words.
        seed: With a response's id it decides all draws.
    """

    ways: tuple[Hiding, ...]
    records: float
    words: float
    seed: int

    def hide_all(self, identity: str, texts: Sequence[str]) -> list[tuple[str, list[int]]] | None:
        """Hides the texts of one response, see `hide`; None if it does not hide."""
        random = Random(f"{self.seed} {identity}")
        if random.random() >= self.records:
            return None
        way = random.choice(self.ways)
        return [hide(text, way, self.words, random) for text in texts]
