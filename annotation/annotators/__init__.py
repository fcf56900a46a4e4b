"""Sentence annotators: each module labels the sentences of a response, one file a way."""
