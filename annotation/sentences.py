"""Sentences, words and parts of speech of responses.

Source: arXiv 2506.09996, section on FineHarm: the notional words of a harmful sentence are harmful.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import cache

import spacy
from markdown_it import MarkdownIt
from spacy.language import Language
from spacy.tokenizer import Tokenizer
from spacy.tokens import Doc, Span

from annotation.options import SPACY_MODEL
from annotation.records import ParsedResponse, batched
from annotation.sources import Row
from utils.files import InputError
from utils.processes import map_chunks

# The open-class words of Universal Dependencies, which the paper calls notional words. Closed
# classes carry no content of their own: "you will" is the same in a threat and in a recipe.
# Interjections do: in abuse they are often all the content there is.
NOTIONAL_POS = frozenset({"NOUN", "PROPN", "VERB", "ADJ", "ADV", "INTJ"})

BATCH = 64  # responses a process gets at once
MAX_CHARACTERS = 200_000  # of a response; spaCy takes 4 GB for as many signs
STRETCH = 500  # characters without white space that spaCy's tokenizer gets at once

BLOCKS = MarkdownIt("commonmark")
BLOCKS.core.ruler.enableOnly(["normalize", "block"])  # nothing within lines

LINE_END = re.compile(r"\r\n?|\n")
MARK_LENGTH = 8  # characters of a list mark and the space after it
LIST_MARK = re.compile(r"(?:\W{1,3}|\W?\w{1,3}[.):])")  # "-", "*", "1.", "(a)", "iv)"


@cache
def load_language(name: str = SPACY_MODEL) -> Language:
    """Loads an installed spaCy pipeline, or one in a folder, for sentences and parts of speech.

    Raises:
        InputError: There is none of this name, or it finds no sentences or parts of speech.
    """
    try:
        language = spacy.load(name, exclude=["ner", "lemmatizer"])
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--spacy-model: '{name}': cannot be loaded ({reason})") from None
    if isinstance(language.tokenizer, Tokenizer):
        language.tokenizer = LinearTokenizer(language.tokenizer)
    probe = language("A b.")
    if not (probe.has_annotation("SENT_START") and probe.has_annotation("POS")):
        raise InputError(f"--spacy-model: '{name}': finds no sentences or no parts of speech")
    return language


class LinearTokenizer:
    """Gives spaCy's tokenizer long stretches without white space in parts.

    It takes signs off a stretch one by one and copies the rest each time: without parts, 100,000
    exclamation marks take half an hour.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str) -> Doc:
        """Returns the words of a text; the same as spaCy's where no stretch is long."""
        cuts = [
            cut
            for stretch in re.finditer(r"\S+", text)
            for cut in range(stretch.start() + STRETCH, stretch.end(), STRETCH)
        ]
        if not cuts:
            return self.tokenizer(text)
        parts = zip([0, *cuts], [*cuts, len(text)], strict=True)
        docs = [self.tokenizer(text[start:end]) for start, end in parts]
        return Doc.from_docs(docs, ensure_whitespace=False, attrs=["NORM"])


def _parse_chunk(language: Language, chunk: list[tuple[Row, str]]) -> list[ParsedResponse]:
    with language.memory_zone():  # otherwise every new word stays in memory for good
        docs = language.pipe((row.response for row, _ in chunk), batch_size=BATCH)
        return [_parsed_row(doc, *pair) for doc, pair in zip(docs, chunk, strict=True)]


def parse(
    rows: Iterable[tuple[Row, str]], num_workers: int, language: str = SPACY_MODEL
) -> Iterator[ParsedResponse]:
    """Finds sentences, words and parts of speech of (row, split) pairs, in order.

    Rows are read a few chunks ahead; one worker is this process. spaCy's own multiprocessing would
    send whole documents back, which costs more than parsing them.
    """
    load_language(language)  # fails early, and workers inherit it
    chunks = batched(rows, BATCH)
    for parsed in map_chunks(_parse_chunk, chunks, num_workers, load_language, language):
        yield from parsed


def _parsed_row(doc: Doc, row: Row, split: str) -> ParsedResponse:
    sentences = sentences_of(doc)
    words = [[word for word in sentence if not word.is_space] for sentence in sentences]
    starts = [some[0].idx for some in words]
    ends = [some[-1].idx + len(some[-1]) for some in words]
    return ParsedResponse(
        id=row.id,
        prompt=row.prompt,
        response=row.response,
        label=row.label,
        split=split,
        starts=starts,
        sentences=[row.response[start:end] for start, end in zip(starts, ends, strict=True)],
        words=[[word.text for word in some] for some in words],
        word_starts=[
            [word.idx - start for word in some] for some, start in zip(words, starts, strict=True)
        ],
        notional=[[int(word.pos_ in NOTIONAL_POS) for word in some] for some in words],
        spans=row.spans,
    )


def fenced_code(text: str) -> list[int]:
    """Returns where fenced code starts, ends, starts …, by CommonMark's rule, in code points."""
    if "```" not in text and "~~~" not in text:
        return []
    lines = [0, *(end.end() for end in LINE_END.finditer(text)), len(text)]
    return [
        lines[line] for block in BLOCKS.parse(text) if block.type == "fence" for line in block.map
    ]


def sentences_of(doc: Doc) -> list[Span]:
    """Returns the sentences of a text, none blank; together they hold all but white space.

    Boundaries are spaCy's, and line breaks: list items and headings are sentences of their own. A
    list mark belongs to what follows it, and fenced code is one sentence, however many its lines.
    """
    text = doc.text  # joined anew at each access
    edges = fenced_code(text)  # rising: into code, out of it, …
    cuts, passed, after_break, line_start = [0], 0, False, 0
    for token in doc:
        if token.is_space:
            after_break = after_break or LINE_END.search(token.text) is not None
            continue
        start, before = token.idx, passed
        passed = bisect_right(edges, start)
        inside = passed % 2 == 1
        if after_break:
            line_start = start
        begins = passed > before or (after_break and not inside)
        if not begins and not inside and token.is_sent_start:
            long = start - line_start > MARK_LENGTH
            begins = long or not LIST_MARK.fullmatch(text[line_start:start].strip())
        if begins and token.i:
            cuts.append(token.i)
        after_break = False
    pieces = [doc[start:end] for start, end in zip(cuts, [*cuts[1:], len(doc)], strict=True)]
    return [piece for piece in pieces if piece.text.strip()]
