"""The coarsest annotator: every sentence is what its response is."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from annotation.records import Annotation, Parsed
from utils.files import InputError


class ResponseAnnotator:
    """Calls every sentence what its response is called."""

    def annotate(self, records: Iterable[Parsed]) -> Iterator[Annotation]:
        """Annotates records in order."""
        for record in records:
            yield Annotation([record.label] * len(record.sentences))

    def score(self, sentences: list[str]) -> np.ndarray:
        """Refuses: a sentence alone has no response.

        Raises:
            InputError: Always.
        """
        raise InputError("--word-rule delete: --annotator response scores no sentences")

    def report(self) -> dict[str, Any]:
        """Returns nothing: there are no settings."""
        return {}
