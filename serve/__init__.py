"""The monitor behind HTTP: a gateway before an LLM, and a session API."""
