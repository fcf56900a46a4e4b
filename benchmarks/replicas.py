"""Replicas that die, come and go amid sessions and streams (run-benchmark.sh replicas).

Two replicas on a local Ray cluster. One is killed, one is added, all but one are drained, while
callers send sessions in fragments and read answers of a stub. Every session must end in the verdict
of the unbroken one, and no answer may show a character that the monitor does not let pass.
"""

import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import psutil

from benchmarks.gateway import server
from benchmarks.options import ReplicasBenchmarkConfig
from benchmarks.stub_llm import words
from benchmarks.timing import print_row, recorded
from monitor.stream import StreamingContentMonitor
from serve.options import ReplicasConfig
from serve.replicas import deployment
from utils.files import InputError

PROMPT = "Tell a story."
PIECE = 17  # characters of a fragment
TOKENS = 240  # chunks of the stub's answer
ROOT = Path(__file__).parents[1]


def expected_of(monitor: StreamingContentMonitor, text: str) -> dict[str, Any]:
    """Judges a text at once, as a session or stream should end."""
    with monitor.open(PROMPT) as stream:
        verdict = stream.feed(text)
        verdict = verdict if verdict.stopped else stream.close()
    names = ("level", "stopped", "reason", "stop_token", "stop_character", "tokens", "verified")
    return {name: getattr(verdict, name) for name in names}


class Callers:
    """Callers of sessions and readers of streams, until they are told to end."""

    def __init__(self, url: str, text: str, expected: dict[str, Any]) -> None:
        self._url, self._text, self._expected = url, text, expected
        self._client = httpx2.Client(timeout=60, trust_env=False)
        self.ended, self.counts = threading.Event(), Counter()

    def _post(self, path: str, body: dict[str, Any], name: str) -> httpx2.Response:
        for _ in range(240):  # a replica that is gone; the next try meets another one
            try:
                headers = {"x-session-id": name}
                reply = self._client.post(self._url + path, json=body, headers=headers)
                if reply.status_code < 500:
                    return reply
            except httpx2.HTTPError:
                pass
            self.counts["tried again"] += 1
            time.sleep(0.25)
        raise RuntimeError("no replica answers")

    def sessions(self, number: int) -> None:
        """Sends one session after the other."""
        while not self.ended.is_set():
            self.counts["sessions"] += 1
            reply = self._session(f"{number}-{self.counts['sessions']}")
            same = {name: reply[name] for name in self._expected} == self._expected
            self.counts["sessions that differ"] += not same

    def _session(self, name: str) -> dict[str, Any]:
        def open_it() -> None:
            self._post("/v1/sessions", {"id": name, "prompt": PROMPT}, name)

        open_it()
        place = 0
        while True:
            fragment = self._text[place : place + PIECE]
            body = {"offset": place, "text": fragment, "final": place + PIECE >= len(self._text)}
            reply = self._post(f"/v1/sessions/{name}", body, name)
            if reply.status_code == 404:
                self.counts["opened anew"] += 1
                open_it()
                place = 0
            elif reply.status_code == 409:
                self.counts["sent again"] += 1
                place = reply.json()["have"]
            else:
                found = reply.json()
                self.counts["unjudged"] += found["release"] > self._expected["verified"]
                if found["stopped"] or body["final"]:
                    return found
                place += PIECE
                time.sleep(0.1)

    def streams(self) -> None:
        """Reads one answer after the other; those of a replica that dies are cut."""
        passes = self._text[: self._expected["verified"]]
        body = {"model": "m", "stream": True, "max_tokens": TOKENS}
        body["messages"] = [{"role": "user", "content": PROMPT}]
        while not self.ended.is_set():
            shown, done = "", False
            try:
                path = f"{self._url}/v1/chat/completions"
                with self._client.stream("POST", path, json=body) as reply:
                    for event in httpx2.EventSource(reply):
                        done |= event.data == "[DONE]"
                        if done or not event.data:
                            continue
                        for choice in event.json().get("choices", []):
                            shown += choice["delta"].get("content") or ""
            except httpx2.HTTPError:
                time.sleep(0.5)
            shown = shown.removesuffix(ReplicasConfig.stop_text)
            self.counts["streams" if done else "streams cut"] += 1
            self.counts["unjudged"] += not passes.startswith(shown)


def main(config: ReplicasBenchmarkConfig) -> None:
    """Runs it and writes what was seen.

    Raises:
        InputError: Ray is missing, a session ended otherwise, or something unjudged was shown.
    """
    try:
        import ray
        from ray import serve
    except ImportError:
        raise InputError("Ray is missing: pip install -r requirements-serve.txt") from None
    text = "".join(words(TOKENS))
    expected = expected_of(StreamingContentMonitor.from_pretrained(config.model_path), text)
    with recorded(config) as record, server("benchmarks.stub_llm", "20") as (llm, _):
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        ray.init(log_to_driver=False, num_cpus=4, runtime_env={"env_vars": environment})
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": config.port})
            two = ReplicasConfig(
                model_path=str(Path(config.model_path).resolve()), upstream=f"{llm}/v1",
                replicas=2, cpus=0.5, drain=30.0, max_streams=64,
            )  # fmt: skip
            serve.run(deployment(two), name="scm")
            callers = Callers(f"http://127.0.0.1:{config.port}", text, expected)
            threads = [
                *(threading.Thread(target=callers.sessions, args=(n,)) for n in range(6)),
                *(threading.Thread(target=callers.streams) for _ in range(4)),
            ]
            for thread in threads:
                thread.start()
            time.sleep(config.pause)
            replicas = [
                process
                for process in psutil.process_iter(["cmdline"])
                if "ServeReplica" in " ".join(process.info["cmdline"] or [])
            ]
            os.kill(replicas[0].pid, signal.SIGKILL)
            for count in (3, 1):
                time.sleep(config.pause)
                serve.run(deployment(replace(two, replicas=count)), name="scm")
            time.sleep(config.pause)
            callers.ended.set()
            for thread in threads:
                thread.join()
        finally:
            serve.shutdown()
            ray.shutdown()
        record |= {"expected": expected, "counts": dict(callers.counts)}
        print_row(dict(callers.counts))
    counts = callers.counts
    if counts["sessions that differ"] or counts["unjudged"]:
        raise InputError(f"{config.output}: a session ended otherwise, or unjudged text was shown")
