"""The coarsest annotator: every sentence is what its response is."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from annotation.options import BuildConfig
from annotation.records import Annotation, Annotator, ParsedResponse


@dataclass
class ResponseConfig(BuildConfig):
    """Every sentence is what its response is."""

    def make_annotator(self) -> "ResponseAnnotator":
        """Returns the annotator."""
        return ResponseAnnotator()


class ResponseAnnotator(Annotator):
    """Calls every sentence what its response is called."""

    def annotate(self, records: Iterable[ParsedResponse]) -> Iterator[Annotation]:
        """Annotates records in order."""
        for record in records:
            yield Annotation([record.label] * len(record.sentences))
