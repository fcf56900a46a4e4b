"""Equal prompts and near duplicates of responses."""

import hashlib
import re
import sqlite3
import zlib
from pathlib import Path

import numpy as np

from annotation.sources import Row
from utils.files import InputError

SHINGLE = 5  # words of a shingle; near duplicates share most of theirs
LONG_WORDS = 10  # characters a word, on average; above, as in Chinese, a shingle is of characters
HASHES, BANDS = 64, 16  # of MinHash: pairs of Jaccard similarity 0.9 meet with probability > 0.9999
CROWD = 32  # rows a band remembers
PRIME = (1 << 31) - 1


def prompt_key(text: str) -> str:
    """Returns what tells prompts apart: their words. Case, punctuation and spacing do not count."""
    return " ".join(re.findall(r"\w+", text.casefold()))


class DuplicateIndex:
    """Finds equal ids and duplicates, exact and near, with what it remembers on disk.

    Near duplicates are found by MinHash over word shingles: the share of equal hashes estimates the
    Jaccard similarity of two texts. Both the responses and the prompts have to be similar: two
    answers to one long prompt are no duplicates, nor is one stock refusal to two prompts.

    Rows are looked up by bands, each of some hashes of both texts. A band remembers its first rows
    only, so that thousands that share a template and an answer are not all compared. The bands of
    what they do not share still find their near duplicates.

    Args:
        path: A scratch file; the caller deletes it.
        near: Least estimated similarity of a near duplicate; 1 or more looks for exact ones only.
    """

    def __init__(self, path: Path, near: float) -> None:
        self.near = near
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            "CREATE TABLE ids (id TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID;"
            "CREATE TABLE texts (digest BLOB PRIMARY KEY, id TEXT, label INTEGER) WITHOUT ROWID;"
            "CREATE TABLE signatures"
            " (number INTEGER PRIMARY KEY, id TEXT, label INTEGER, signature BLOB);"
            "CREATE TABLE bands (band BLOB, number INTEGER, PRIMARY KEY (band, number))"
            " WITHOUT ROWID; BEGIN"
        )
        random = np.random.default_rng(0)
        self.slopes = random.integers(1, PRIME, (HASHES, 1), dtype=np.uint64)
        self.offsets = random.integers(0, PRIME, (HASHES, 1), dtype=np.uint64)

    def close(self) -> None:
        self.connection.close()

    def check_id(self, row: Row, column: str) -> None:
        """Remembers a row's id; raises InputError, which names `column`, if another row has it."""
        place = row.where.rsplit(": ", 1)[-1]
        try:
            self.connection.execute("INSERT INTO ids VALUES (?, ?)", (row.id, place))
        except sqlite3.IntegrityError:
            query = "SELECT place FROM ids WHERE id = ?"
            (other,) = self.connection.execute(query, (row.id,)).fetchone()
            raise InputError(
                f"{row.where}: field '{column}': '{row.id}' stands at {other} too"
            ) from None

    def duplicate_of(self, row: Row) -> tuple[str, str] | None:
        """Looks a row up among the kept ones, whatever its white space and case; keeps a new one.

        Returns:
            What it is ("exact duplicate", "near duplicate", either "with another label") and the id
            of the earlier row; None for a new row.
        """
        words = f"{row.prompt} {row.response}".casefold().split()
        digest = hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()
        query = "SELECT id, label FROM texts WHERE digest = ?"
        if found := self.connection.execute(query, (digest,)).fetchone():
            return "exact duplicate" + " with another label" * (found[1] != row.label), found[0]
        if self.near < 1 and (found := self._near_duplicate_of(row)):
            return found
        self.connection.execute("INSERT INTO texts VALUES (?, ?, ?)", (digest, row.id, row.label))
        return None

    def _near_duplicate_of(self, row: Row) -> tuple[str, str] | None:
        prompt, response = self.signature(prompt_key(row.prompt)), self.signature(row.response)
        signatures = np.stack([prompt, response])  # [2, HASHES]
        mixed = np.where(np.arange(HASHES) % 2, prompt, response)
        bands = [
            bytes([number]) + hashlib.blake2b(part.tobytes(), digest_size=8).digest()
            for number, part in enumerate(np.split(mixed, BANDS))
        ]
        query = "SELECT number FROM bands WHERE band = ?"
        sharing = [self.connection.execute(query, (band,)).fetchall() for band in bands]
        query = "SELECT id, label, signature FROM signatures WHERE number = ?"
        for number in sorted(set().union(*sharing)):
            identity, label, stored = self.connection.execute(query, number).fetchone()
            equal = np.frombuffer(stored, np.uint32).reshape(2, HASHES) == signatures
            if (equal.mean(axis=1) >= self.near).all():
                return "near duplicate" + " with another label" * (label != row.label), identity
        insert = "INSERT INTO signatures (id, label, signature) VALUES (?, ?, ?)"
        values = (row.id, row.label, signatures.tobytes())
        number = self.connection.execute(insert, values).lastrowid
        for band, rows in zip(bands, sharing, strict=True):
            if len(rows) < CROWD:
                self.connection.execute("INSERT INTO bands VALUES (?, ?)", (band, number))
        return None

    def signature(self, text: str) -> np.ndarray:
        """Returns the MinHash of a text's shingles, uint32 [HASHES]."""
        words = text.casefold().split()
        if len(joined := "".join(words)) > LONG_WORDS * len(words):
            words = list(joined)
        starts = range(max(1, len(words) - SHINGLE + 1))
        shingles = {zlib.crc32(" ".join(words[at : at + SHINGLE]).encode()) for at in starts}
        codes = np.fromiter(shingles, np.uint64, len(shingles)) % PRIME
        return ((self.slopes * codes + self.offsets) % PRIME).min(axis=1).astype(np.uint32)
