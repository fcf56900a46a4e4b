"""FineHarm records, their alignment with tokens, processed splits and batches."""
