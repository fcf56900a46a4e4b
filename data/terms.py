"""Terms of a bag of words, in languages with and without spaces."""

import re
from itertools import pairwise

# Thai, Lao, Myanmar, Khmer, kana and Han: no space divides their words
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
WORD = re.compile(rf"[^\W{UNSPACED}]{{2,}}")
RUN = re.compile(rf"[{UNSPACED}]+")
LONGEST = 3  # characters of an unspaced term


def terms(text: str) -> list[str]:
    """Returns the words of two characters or more and pairs of them, in lower case.

    A script without spaces, where a clause would be one word, gives runs of 1 to 3 characters.
    """
    text = text.lower()
    words = WORD.findall(text)
    return [
        *words,
        *map(" ".join, pairwise(words)),
        *(
            run[start : start + size]
            for run in RUN.findall(text)
            for size in range(1, LONGEST + 1)
            for start in range(len(run) - size + 1)
        ),
    ]
