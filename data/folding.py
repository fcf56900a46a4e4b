"""The folded reading: text that hides from a model, read as people read it.

What cannot be seen is dropped, letters in disguise become plain ones, words that are spelled out
are joined, and digits that stand for letters become letters. Each character keeps its place in the
original. A text is folded while it grows: the outcome does not depend on how it was cut.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache

import regex
from confusable_homoglyphs.confusables import confusables_data

LEET = {"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s", "!": "i"}
SEPARATORS = ".-_*"  # what may stand between the letters of a word that is spelled out
SPELLED_OUT = 3  # letters from which on a row of single ones is a word; 2 right after such a one
LONGEST_WORD = 512  # characters that wait for the end of their word; a longer one is left alone
INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}|[\p{Cc}--[\t\n\r]]", regex.V1)
_LEET = "".join(LEET)
MEDIAL_LEET = regex.compile(rf"[A-Za-z][{_LEET}]+[A-Za-z]")
# text without a match stays as it is
TO_FOLD = regex.compile(
    rf"[^\t\n\r\x20-\x7e]|{MEDIAL_LEET.pattern}"
    rf"|[A-Za-z]([ {regex.escape(SEPARATORS)}])[A-Za-z{_LEET}]\1[A-Za-z{_LEET}]"
)

Placed = tuple[str, int]  # a character and its place in the original


@cache
def homoglyphs() -> dict[str, str]:
    """Returns the letters that look like Latin ones, each with the plain letter.

    Source: Unicode Technical Standard 39, confusables, as confusable_homoglyphs carries them.
    """
    return {
        other["c"]: letter
        for letter in map(chr, (*range(0x41, 0x5B), *range(0x61, 0x7B)))
        for other in confusables_data[letter]
        if len(other["c"]) == 1 and not other["c"].isascii() and other["c"].isalpha()
    }


@lru_cache(maxsize=1 << 14)
def fold_character(character: str) -> str:
    """Folds what needs no context: accents, styled letters, white space; "" for the invisible."""
    if INVISIBLE.match(character):
        return ""
    if character.isascii():
        return character
    category = unicodedata.category(character)
    if category == "Zs":
        return character if character == "\u3000" else " "
    if category[0] in "LN" or category == "So" and character not in "\u2120\u2122":  # ℠ ™
        parts = unicodedata.normalize("NFKD", character)
        plain = "".join(part for part in parts if not unicodedata.combining(part))
        if plain.isascii() and plain.isalnum():
            return plain
        if unicodedata.name(character, "").startswith("LATIN"):
            return homoglyphs().get(character, character)
    return character


@lru_cache(maxsize=1 << 14)
def _in_word(character: str) -> bool:
    """Says whether a character may lie in a word that is looked at as a whole."""
    plain = character.isascii() and character.isalnum()
    return plain or character in LEET or character in SEPARATORS or character in homoglyphs()


@lru_cache(maxsize=1 << 14)
def _is_mark(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Me")


class Folding:
    """Folds a text that grows; `fold` does it in one call."""

    def __init__(self) -> None:
        self._length = 0
        self._done: list[Placed] = []
        self._last = " "  # the last character that can be seen
        self._word: list[Placed] = []  # the word that is not over yet
        self._is_long = False  # it is too long to be looked at
        self._masked = False  # it has letters in disguise
        self._row: list[Placed] = []  # single letters with a space between, or the space after them
        self._joined = False  # the letters before the row were given out as one word
        self._enough = SPELLED_OUT  # letters of a row that would be a word now
        self._foreign = False  # the word stands right behind a letter that has no Latin double
        self._latin = True  # the last word that was certain was in Latin letters
        self._leet = False  # in the last words digits stood for letters

    def feed(self, text: str) -> tuple[str, list[int]]:
        """Takes the next characters.

        Returns:
            What is final now, and where in the whole text each of its characters comes from.
        """
        for place, character in enumerate(text, start=self._length):
            if _is_mark(character) and _in_word(self._last):
                continue
            for plain in fold_character(character):
                self._last = plain
                self._take((plain, place))
                self._masked |= not character.isascii() and _in_word(plain)
        self._length += len(text)
        return self._give()

    def finish(self) -> tuple[str, list[int]]:
        """Ends the text; returns as `feed`."""
        self._end_word()
        self._end_row()
        return self._give()

    @property
    def final(self) -> int:
        """How many characters of the original all that was given out comes from."""
        waiting = self._row or self._word
        return waiting[0][1] if waiting else self._length

    def _give(self) -> tuple[str, list[int]]:
        done, self._done = self._done, []
        return "".join(character for character, _ in done), [place for _, place in done]

    def _take(self, one: Placed) -> None:
        """Takes one more character that can be seen."""
        character, _ = one
        if not _in_word(character):
            self._end_word(character)
            self._take_other(one)
        elif self._is_long:
            self._done.append(one)
        else:
            self._word.append(one)
            if len(self._word) > LONGEST_WORD:
                self._end_row()
                self._done += self._word
                self._word, self._is_long = [], True

    def _take_other(self, one: Placed) -> None:
        """Takes a character that lies in no word."""
        character, _ = one
        after_letter = self._row[-1][0] != " " if self._row else self._joined
        if character == " " and after_letter:
            self._row.append(one)
        elif not self._end_row() or character != " ":  # of two spaces after a row one is enough
            self._done.append(one)
        self._foreign = character.isalpha()
        if self._foreign:
            self._latin = self._leet = False

    def _end_row(self) -> bool:
        """Gives out what waits of a row; says whether it was a word with a space after it."""
        was_word = self._joined and bool(self._row)
        self._done += self._row
        self._row, self._joined = [], False
        return was_word

    def _end_word(self, following: str = " ") -> None:
        """Takes the word that `following` ends."""
        word, self._word, self._is_long = self._word, [], False
        foreign, self._foreign = self._foreign, False
        masked, self._masked = self._masked, False
        text = "".join(character for character, _ in word)
        if any(letter.isascii() and letter.isalpha() for letter in text):
            self._latin = True
        elif foreign or following.isalpha() or not self._latin:
            self._end_row()  # a word of another script, or no word at all
            self._done += word
            return
        word = [(homoglyphs().get(letter, letter), place) for letter, place in word]
        if masked:  # the doubles of I and l are each other's, too
            for number in range(1, len(word)):
                if word[number][0] == "I" and word[number - 1][0].islower():
                    word[number] = "l", word[number][1]
        start = len(text) - len(text.lstrip(SEPARATORS))
        end = max(start, len(text.rstrip(SEPARATORS + "!")))
        for one in word[:start]:
            self._take_other(one)
        if start < end:
            self._take_word(word[start:end])
        for one in word[end:]:
            self._take_other(one)

    def _take_word(self, word: list[Placed]) -> None:
        """Takes a word in Latin letters, without separators at its ends."""
        text = "".join(character for character, _ in word)
        if len(word) == 1 and (text.isalpha() or text in LEET):
            goes_on = bool(self._row) and self._row[-1][0] == " "
            if goes_on and self._joined:
                self._row = []
                self._done += _letters(word)
                return
            if goes_on:
                self._row += word
                if len(self._row) == 2 * self._enough - 1:
                    self._done += _letters(self._row[::2])
                    self._row, self._joined, self._enough = [], True, SPELLED_OUT - 1
                return
            if text.isalpha():
                self._end_row()
                self._row = word
                return
        self._end_row()
        is_spelled_out = (
            len(word) >= 2 * self._enough - 1
            and len(word) % 2
            and text[1] in SEPARATORS
            and set(text[1::2]) == {text[1]}
            and text[0].isalpha()
            and all(one.isalpha() or one in LEET for one in text[::2])
        )
        self._enough = SPELLED_OUT - is_spelled_out
        if is_spelled_out:
            self._done += _letters(word[::2])
        elif "@" in text and "." in text:  # an address
            self._done += word
        else:
            self._done += self._unleet(word, text)

    def _unleet(self, word: list[Placed], text: str) -> list[Placed]:
        """Turns digits and signs into the letters that they stand for.

        They do between letters; where words so far had nothing but such ones, everywhere.
        """
        certain = MEDIAL_LEET.search(text) is not None
        if certain:
            self._leet = True
        elif not any(one in LEET for one in text) and any(
            one.lower() in LEET.values() for one in text
        ):
            self._leet = False
        short = len(text) <= 2 or any(one.isalpha() for one in text)
        is_number = any(one.isdigit() and one not in LEET for one in text)
        if is_number or not (certain or self._leet and short):
            return word
        return _letters(word)


def _letters(word: Sequence[Placed]) -> list[Placed]:
    return [(LEET.get(character, character), place) for character, place in word]


def fold(text: str) -> tuple[str, Sequence[int]]:
    """Folds a whole text.

    Returns:
        The folded text, and where in the original each of its characters comes from.
    """
    if not TO_FOLD.search(text):
        return text, range(len(text))
    folding = Folding()
    folded, places = folding.feed(text)
    rest, their = folding.finish()
    return folded + rest, places + their
