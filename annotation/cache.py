"""Labels that cost something, kept on disk by a hash of all that decides them."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from annotation.options import ModelConfig
from annotation.records import WINDOW, Annotation, ParsedResponse, batched
from utils.files import InputError


class LabelCache:
    """Annotations in an SQLite file, without any text. Several processes may share it.

    Raises:
        InputError: The file does not serve as a cache.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._named():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.database = sqlite3.connect(path, timeout=60, isolation_level=None)
            self.database.execute("PRAGMA journal_mode=WAL")
            self.database.execute("PRAGMA synchronous=NORMAL")
            self.database.execute(
                "CREATE TABLE IF NOT EXISTS labels (key TEXT PRIMARY KEY, labels TEXT,"
                " problem TEXT) WITHOUT ROWID"
            )

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise InputError(f"{self.path}: does not serve as a cache ({error})") from None

    def get(self, key: str) -> Annotation | None:
        """Returns an earlier annotation."""
        with self._named():
            query = "SELECT labels, problem FROM labels WHERE key = ?"
            row = self.database.execute(query, [key]).fetchone()
        return row and Annotation(json.loads(row[0]), row[1])

    def put(self, annotations: dict[str, Annotation]) -> None:
        """Keeps annotations by their keys; once this returns they outlive a kill -9."""
        rows = [(key, json.dumps(one.labels), one.problem) for key, one in annotations.items()]
        with self._named(), self.database:
            self.database.execute("BEGIN")
            self.database.executemany("INSERT OR REPLACE INTO labels VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        self.database.close()


def keep_labels(
    config: ModelConfig,
    records: Iterable[ParsedResponse],
    annotate: Callable[[list[ParsedResponse]], Iterable[Annotation]],
) -> Iterator[Annotation]:
    """Yields each record's annotation: the kept one, or else that of `annotate`, which is kept.

    A record's key is a hash of its texts and of `config.identity()`.
    """
    identity = config.identity()
    with closing(LabelCache(config.cache_path())) as cache:
        for window in batched(records, WINDOW):
            texts = ([one.prompt, one.response, one.sentences] for one in window)
            content = (json.dumps([identity, text]).encode() for text in texts)
            keys = [hashlib.sha256(one).hexdigest() for one in content]
            found = {key: cache.get(key) for key in keys}
            new = {key: one for key, one in zip(keys, window, strict=True) if found[key] is None}
            if new:
                made = dict(zip(new, annotate(list(new.values())), strict=True))
                cache.put(made)
                found |= made
            yield from (found[key] for key in keys)
