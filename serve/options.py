"""Options of the gateway."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from monitor.options import HoldBack, OnPrompt
from serve.requests import PromptFrom
from utils.files import InputError
from utils.options import refuse_below_one

OWN_LLM = "backbones/smollm2-135m"


@dataclass(kw_only=True)
class GatewayConfig:
    """Options of the gateway.

    Keys are read from the environment: UPSTREAM_API_KEY and PROMPT_CHECK_API_KEY, if set.
    """

    model_path: str = "backbones/scm-135m"
    """The monitor: output folder of run-scm.sh or get-scm.sh; by default the released one, which
    scripts/run-gateway.sh builds."""
    upstream: str = ""
    """The LLM's API, such as http://127.0.0.1:8000/v1."""
    llm: str = ""
    """Without --upstream: folder of a language model to serve here (safetensors); default
    backbones/smollm2-135m, which scripts/run-gateway.sh builds."""
    settings: str | None = None
    """Thresholds; default the file monitor.json in the model's folder."""
    name: str = ""
    """What clients call the monitor; default its folder's name."""
    host: str = "127.0.0.1"
    """Address to listen at."""
    port: int = 8800
    """Port to listen at; 0 for any."""
    key_file: str = ""
    """File with the keys that clients must bring, one a line; default none is asked for. Clients'
    keys never go upstream then."""
    tls_certificate: str = ""
    """Certificate (PEM), for https."""
    tls_key: str = ""
    """Its key (PEM)."""
    hold_back: str = "0"
    """Verified tokens that wait nevertheless, or "sentence"."""
    stop_text: str = "[stopped by the content monitor]"
    """What a client reads where an answer is stopped; empty for nothing."""
    refusal: str = ""
    """Answer to a blocked prompt; empty: an error 400 as Azure's."""
    azure: bool = False
    """Add Azure's content_filter_results."""
    prompt_from: PromptFrom = "last-user"
    """What the answer is judged after: the last message of the user, or all messages."""
    moderator: str = ""
    """Output folder of run-mlpm.sh --monitor-path: judges prompts by the monitor's own reading."""
    on_prompt: OnPrompt = "note"
    """Of --moderator: a flagged prompt is told of, lowers the threshold (settings of run-mlpm.sh
    prior), or is not answered."""
    prompt_check: str = ""
    """API with /moderations, such as http://127.0.0.1:8001/v1, that prompts are checked by."""
    prompt_check_failure: Literal["block", "pass"] = "block"
    """What becomes of a prompt that could not be checked."""
    prompt_check_timeout: float = 10.0
    """Seconds that the check may take."""
    max_streams: int = 32
    """Choices, sessions and texts that are followed at a time."""
    max_body: int = 1 << 20
    """Bytes of a request."""
    idle_timeout: float = 600.0
    """Seconds without text after which a stream or session ends."""
    session_age: float = 3600.0
    """Seconds after which a session ends."""
    sessions_per_key: int = 64
    """Sessions of one key at a time."""
    connect_timeout: float = 5.0
    """Seconds to reach the upstream."""
    upstream_timeout: float = 300.0
    """Seconds that the upstream may be silent, before its first byte, too."""
    send_timeout: float = 60.0
    """Seconds that a client may take for a chunk."""
    grace: float = 10.0
    """Seconds that streams get to end when the service closes."""
    context: int | None = None
    """Most tokens of prompt and answer; default all the model can take."""
    bf16: bool = False
    """Hold the monitor's weights in bfloat16; scores then depend slightly on the cutting."""

    def __post_init__(self) -> None:
        refuse_below_one(self, "max_streams", "max_body", "sessions_per_key")
        if self.upstream and self.llm:
            raise InputError("--upstream and --llm exclude each other")
        if not self.upstream:
            self.llm = self.llm or OWN_LLM
        if self.moderator and self.prompt_check:
            raise InputError("--moderator and --prompt-check exclude each other")
        if self.on_prompt != "note" and not self.moderator:
            raise InputError(f"--on-prompt {self.on_prompt}: needs --moderator")
        for name in ("upstream", "prompt_check"):
            url = getattr(self, name)
            option = f"--{name.replace('_', '-')}"
            if url and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc):
                raise InputError(f"{option}: '{url}' is no http:// or https:// address")
        for name in (
            "idle_timeout", "session_age", "connect_timeout", "upstream_timeout", "send_timeout",
            "prompt_check_timeout",
        ):  # fmt: skip
            if not getattr(self, name) > 0:
                raise InputError(f"--{name.replace('_', '-')}: {getattr(self, name)} is not > 0")
        if not self.grace >= 0:
            raise InputError(f"--grace: {self.grace} is below 0")
        if not 0 <= self.port < 1 << 16:
            raise InputError(f"--port: {self.port} is no port")
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise InputError("--tls-certificate and --tls-key: give both or neither")
        self.held_back()

    def held_back(self) -> HoldBack:
        """Returns the hold-back; raises InputError where it is neither."""
        if self.hold_back == "sentence":
            return "sentence"
        if not self.hold_back.isdecimal() or len(self.hold_back) > 6:
            raise InputError(
                f"--hold-back: '{self.hold_back}' is neither a number of tokens nor 'sentence'"
            )
        return int(self.hold_back)

    def keys(self) -> tuple[str, ...]:
        """Reads the clients' keys; raises InputError where the file holds none."""
        if not self.key_file:
            return ()
        try:
            lines = Path(self.key_file).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is no text"
            raise InputError(f"{self.key_file}: cannot be read: {reason}") from None
        keys = tuple(line.strip() for line in lines if line.strip())
        if not keys:
            raise InputError(f"{self.key_file}: holds no key")
        return keys

    @staticmethod
    def secret(name: str) -> str | None:
        """Returns a key from the environment."""
        return os.environ.get(name) or None


@dataclass(kw_only=True)
class ReplicasConfig(GatewayConfig):
    """Options of the gateway on several replicas. TLS is left to a proxy before it.

    Keys are read from the environment of the replicas: UPSTREAM_API_KEY and PROMPT_CHECK_API_KEY.
    """

    replicas: int = 2
    """Replicas, each with a monitor of its own."""
    cpus: float = 1.0
    """Processors that Ray counts for a replica."""
    drain: float = 600.0
    """Seconds that a replica which is taken away gets for its streams."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below_one(self, "replicas")
        for name in ("cpus", "drain"):
            if not getattr(self, name) >= 0:
                raise InputError(f"--{name}: {getattr(self, name)} is below 0")
        if self.tls_certificate:
            raise InputError("--tls-certificate: replicas have none; put a proxy before them")
