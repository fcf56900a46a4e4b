"""Starts the service (scripts/run-gateway.sh)."""

import asyncio
import socket
import ssl
from pathlib import Path

import uvicorn

from moderator.moderator import Moderator
from monitor.stream import StreamingContentMonitor
from serve.app import Service
from serve.embedded import EmbeddedUpstream
from serve.engine import Engine
from serve.gateway import Gateway, Manners
from serve.operations import start_log
from serve.options import GatewayConfig
from serve.prompt_check import ModerationsCheck, ModeratorCheck, NoCheck
from serve.sessions import Sessions
from serve.upstream import HttpUpstream, Upstream
from utils.files import InputError


def build(
    config: GatewayConfig,
    monitor: StreamingContentMonitor | None = None,
    upstream: Upstream | None = None,
) -> Service:
    """Builds the service that the options describe.

    Args:
        config: The options.
        monitor: The monitor; default loaded from its folder.
        upstream: The LLM; default the one of the options.

    Raises:
        InputError: A file is missing or unfit.
    """
    keys = config.keys()
    monitor = monitor or StreamingContentMonitor.from_pretrained(
        config.model_path,
        settings=config.settings,
        context=config.context,
        bf16=config.bf16,
        moderator=Moderator.load(Path(config.moderator)) if config.moderator else None,
        on_prompt=config.on_prompt,
    )
    engine = Engine(
        monitor,
        config.name or Path(config.model_path).resolve().name,
        config.max_streams,
        config.held_back(),
        keys,
        config.idle_timeout,
    )
    if upstream is None:
        upstream = (
            HttpUpstream(
                config.upstream,
                config.secret("UPSTREAM_API_KEY"),
                config.connect_timeout,
                config.upstream_timeout,
            )
            if config.upstream
            else EmbeddedUpstream(Path(config.llm))
        )
    check = NoCheck()
    if monitor.moderator is not None:
        check = ModeratorCheck(engine)
    elif config.prompt_check:
        check = ModerationsCheck(
            config.prompt_check, config.secret("PROMPT_CHECK_API_KEY"), config.prompt_check_timeout
        )
    manners = Manners(config.stop_text, config.refusal, config.azure, config.prompt_check_failure)
    return Service(
        engine,
        Gateway(engine, upstream, check, manners),
        Sessions(engine, config.sessions_per_key, config.session_age, config.idle_timeout),
        prompt_from=config.prompt_from,
        max_body=config.max_body,
        send_timeout=config.send_timeout,
        grace=config.grace,
        stop_text=config.stop_text,
    )


class _Server(uvicorn.Server):
    """Tells all answers, streamed or not, that the service closes as soon as it is told."""

    def __init__(self, closing: asyncio.Event, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._closing = closing

    def handle_exit(self, *signal) -> None:
        """Called by the signal's handler, in the thread of the event loop."""
        self._closing.set()
        super().handle_exit(*signal)


def main(config: GatewayConfig) -> None:
    """Serves until it is told to end.

    Raises:
        InputError: A file is missing or unfit, or the address cannot be listened at.
    """
    if config.tls_certificate:  # all of this before the models are loaded
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(config.tls_certificate, config.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise InputError(f"--tls-certificate, --tls-key: {error}") from None
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        listening = socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        where = f"{config.host}:{config.port}"
        raise InputError(f"--host, --port: cannot listen at {where}: {error.strerror}") from None
    service = build(config)
    start_log()
    server = _Server(
        service.engine.closing,
        uvicorn.Config(
            service.app(),
            host=config.host,
            port=config.port,
            ssl_certfile=config.tls_certificate or None,
            ssl_keyfile=config.tls_key or None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(config.grace) + 5,
            ws_max_size=config.max_body,
        ),
    )
    scheme = "https" if config.tls_certificate else "http"
    port = listening.getsockname()[1]
    print(
        f"the gateway listens at {scheme}://{config.host}:{port}; open it in a browser", flush=True
    )
    server.run(sockets=[listening])
