"""What the service counts and writes down: metrics for Prometheus, a log without texts and keys."""

import json
import logging
import sys
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
CHARACTERS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
STREAMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

LOGGER = logging.getLogger("scm")


class Counts:
    """The metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def make(kind: type, name: str, about: str, labels: tuple[str, ...] = (), **more: Any):
            return kind(f"scm_{name}", about, labels, registry=registry, **more)

        self.requests = make(
            Counter, "requests", "Requests, by route and status", ("route", "status")
        )
        self.open = make(Gauge, "open_streams", "Streams that hold a place")
        self.places = make(Gauge, "places", "Streams that may be open at a time")
        self.sessions = make(Gauge, "open_sessions", "Sessions that are open")
        self.stops = make(Counter, "stops", "Streams stopped", ("level", "reason"))
        self.ended = make(Counter, "ended", "Streams that ran to their own end", ("level",))
        self.tokens = make(Counter, "tokens", "Tokens of responses judged")
        self.harmful = make(Counter, "harmful_tokens", "Tokens at or above the token threshold")
        self.released = make(Counter, "released_characters", "Characters passed on")
        self.withheld = make(Counter, "withheld_characters", "Characters never passed on")
        self.fields = make(Counter, "withheld_fields", "Unknown fields that were not passed on")
        self.held = make(
            Histogram, "held_characters", "Characters held back after a piece", buckets=CHARACTERS
        )
        self.added = make(
            Histogram, "judging_seconds", "From a piece's arrival to what it releases",
            buckets=SECONDS,
        )  # fmt: skip
        self.first = make(
            Histogram, "first_text_seconds", "From a request to its first text, by where that is",
            ("at",), buckets=SECONDS,
        )  # fmt: skip
        self.step = make(Histogram, "step_seconds", "Duration of a step", buckets=SECONDS)
        self.batch = make(Histogram, "step_streams", "Streams a step served", buckets=STREAMS)
        self.refused = make(Counter, "refused", "Requests refused for lack of a place")
        self.cancelled = make(Counter, "upstreams_closed", "Upstreams closed early", ("why",))
        self.failures = make(
            Counter, "failed_closed", "Streams ended since something failed", ("what",)
        )
        self.flagged = make(Counter, "flagged_prompts", "Prompts that their check flagged")
        self.blocked = make(Counter, "blocked_prompts", "Prompts that were blocked")
        self.refed = make(Counter, "repeated_characters", "Characters that sessions sent again")

    def note_step(self, streams: int, seconds: float) -> None:
        """Notes a step of the batcher."""
        self.step.observe(seconds)
        self.batch.observe(streams)

    def text(self) -> bytes:
        """Returns all of it as Prometheus reads it."""
        return generate_latest(self.registry)


class JsonLines(logging.Formatter):
    """A line of JSON a record: time, level, event and the facts that came with it."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:  # a traceback's frames hold texts
            facts["error"] = type(record.exc_info[1]).__name__
        return json.dumps(facts)


def start_log() -> None:
    """Sends the service's log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    LOGGER.handlers, LOGGER.propagate = [handler], False
    LOGGER.setLevel(logging.INFO)


def log(event: str, **facts: Any) -> None:
    """Writes an event down; facts are ids, names and numbers, never texts or keys."""
    LOGGER.info(event, extra={"facts": facts})


def log_failure(event: str, error: BaseException, **facts: Any) -> None:
    """Writes a failure down by the error's type: its message may hold text."""
    LOGGER.error(event, extra={"facts": {**facts, "error": type(error).__name__}})
