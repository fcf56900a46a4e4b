"""The coarsest annotator: every sentence is what its response is."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from annotation.options import BuildConfig
from annotation.records import Annotation, Annotator, ParsedResponse


@dataclass
class ResponseConfig(BuildConfig):
    """Every sentence is what its response is."""

    def make_annotator(self) -> "ResponseAnnotator":
        return ResponseAnnotator()


class ResponseAnnotator(Annotator):
    def annotate(self, records: Iterable[ParsedResponse]) -> Iterator[Annotation]:
        for record in records:
            yield Annotation([record.label] * len(record.sentences))
