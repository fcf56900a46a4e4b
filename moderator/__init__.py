"""Judging prompts by the states that a language model has of them: MLPM, arXiv 2502.16174."""
