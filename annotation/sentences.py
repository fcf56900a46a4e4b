"""Sentences, words, parts of speech, and which words of a harmful sentence are harmful.

Source: arXiv 2506.09996, section on FineHarm: the notional words of a harmful sentence are harmful.
"""

import multiprocessing
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import spacy
from spacy.language import Language
from spacy.tokens import Doc, Span

from annotation.options import SPACY_MODEL
from annotation.records import Parsed, batched
from annotation.sources import Row
from utils.files import InputError
from utils.processes import end_with_parent

# The open-class words of Universal Dependencies: those that carry content of their own. The paper
# calls them notional words. Auxiliaries, pronouns, particles, numerals and all other closed classes
# are left out: "you will" is the same in a threat and in a recipe. Interjections are in, because
# in abuse they are often all the content there is.
NOTIONAL_POS = frozenset({"NOUN", "PROPN", "VERB", "ADJ", "ADV", "INTJ"})
PARSER = 2  # counts up whenever other rows, sentences, words or parts of speech come out
BATCH = 64  # responses a process gets at once
MAX_CHARACTERS = 1_000_000  # of a response; spaCy refuses more

FENCED_CODE = re.compile(r"^[ \t]*```.*?(?:^[ \t]*```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
LIST_MARK = re.compile(r"(?:\W{1,3}|\W?\w{1,3}[.):])")  # "-", "*", "1.", "(a)", "iv)"


def load_language(name: str = SPACY_MODEL) -> Language:
    """Loads a spaCy pipeline with what sentences and parts of speech need, and no more.

    Args:
        name: An installed pipeline, or a folder; by default the English one.

    Raises:
        InputError: There is none of this name, or it finds no sentences or parts of speech.
    """
    try:
        language = spacy.load(name, exclude=["ner", "lemmatizer"])
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--spacy-model: '{name}': cannot be loaded ({reason})") from None
    probe = language("A b.")
    if not (probe.has_annotation("SENT_START") and probe.has_annotation("POS")):
        raise InputError(f"--spacy-model: '{name}': finds no sentences or no parts of speech")
    return language


_worker: dict[str, Language] = {}  # what a worker process keeps between chunks, by name


def _start_worker(name: str) -> None:
    if name not in _worker:  # a forked process has inherited it
        _worker[name] = load_language(name)


def _start_child(name: str) -> None:
    end_with_parent()
    _start_worker(name)


def _parse_chunk(name: str, chunk: list[tuple[Row, str]]) -> list[Parsed]:
    language = _worker[name]
    with language.memory_zone():  # else every new word stays in memory for good
        docs = language.pipe((row.response for row, _ in chunk), batch_size=BATCH)
        pairs = zip(docs, chunk, strict=True)
        return [parsed_row(doc, row, split) for doc, (row, split) in pairs]


def parse(
    rows: Iterable[tuple[Row, str]], num_workers: int, language: str = SPACY_MODEL
) -> Iterator[Parsed]:
    """Finds sentences, words and parts of speech, in order, over several processes.

    spaCy's own multiprocessing sends whole documents back, which costs more than parsing them;
    workers here send words and sentences.

    Args:
        rows: (row, split) pairs with a label, read a few chunks ahead.
        num_workers: Processes; 1 parses in this one.
        language: The spaCy pipeline, see `load_language`.
    """
    chunks = batched(rows, BATCH)
    _start_worker(language)
    if num_workers == 1:
        for chunk in chunks:
            yield from _parse_chunk(language, chunk)
        return
    context = multiprocessing.get_context()
    with ProcessPoolExecutor(num_workers, context, _start_child, (language,)) as pool:
        pending: deque[Future] = deque()
        try:
            for chunk in chunks:
                pending.append(pool.submit(_parse_chunk, language, chunk))
                if len(pending) > 2 * num_workers:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def parsed_row(doc: Doc, row: Row, split: str) -> Parsed:
    """Puts together what was found in a response."""
    sentences = sentences_of(doc)
    words = [[word for word in sentence if not word.is_space] for sentence in sentences]
    starts = [some[0].idx for some in words]
    ends = [some[-1].idx + len(some[-1]) for some in words]
    return Parsed(
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


def sentences_of(doc: Doc) -> list[Span]:
    """Returns the sentences of a text, none blank; together they hold all but white space.

    Boundaries are spaCy's, and line breaks: list items and headings are sentences of their own. A
    list mark belongs to what follows it, and fenced code is one sentence, however many its lines.
    """
    text = doc.text  # joined anew at each access
    fences = [match.span() for match in FENCED_CODE.finditer(text)]
    edges = [edge for fence in fences for edge in fence]  # rising: into code, out of it, …
    cuts, passed, after_break, line_start = [0], 0, False, 0
    for token in doc:
        if token.is_space:
            after_break = after_break or "\n" in token.text
            continue
        start, before = token.idx, passed
        while passed < len(edges) and edges[passed] <= start:
            passed += 1
        crossed, inside = passed > before, passed % 2 == 1
        if after_break:
            line_start = start
        begins = crossed or (not inside and after_break)
        if not begins and not inside and token.is_sent_start:
            so_far = text[line_start : min(start, line_start + 9)].strip()
            begins = start - line_start > 8 or not LIST_MARK.fullmatch(so_far)
        if begins and token.i:
            cuts.append(token.i)
        after_break = False
    pieces = [doc[start:end] for start, end in zip(cuts, [*cuts[1:], len(doc)], strict=True)]
    return [piece for piece in pieces if piece.text.strip()]
