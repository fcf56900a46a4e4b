"""FineHarm reading, labelling, alignment, loss, metrics, evaluation, reports, run record."""
