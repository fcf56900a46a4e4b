"""Sentence annotators, one file a way.

The module NAME defines NAMEConfig, a dataclass of its options (see annotation.options), which
becomes the subcommand NAME of run-annotate.sh, and what its `make_annotator` returns. It imports
what takes long where it needs it, so that `--help` does not wait.
"""
