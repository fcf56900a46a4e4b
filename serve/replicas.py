"""The same service as replicas of a Ray Serve deployment (scripts/run-gateway.sh replicas).

A gateway's stream lives and dies with its request, so it needs no routing. Session posts go by
consistent hashing of the header x-session-id, which is an optimisation: the ring changes with every
replica that comes or goes, and a session that another replica meets is answered 404 or 409, upon
which its caller opens it anew and sends again.
"""

import signal
import threading
from typing import Any

from serve.options import ReplicasConfig
from serve.serving import build
from utils.files import InputError


def deployment(config: ReplicasConfig) -> Any:
    """Returns the application for `ray.serve.run`; each replica builds its own service."""
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    router = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
    return (
        serve.deployment(serve.ingress(lambda: build(config).app())())
        .options(
            name="scm",
            num_replicas=config.replicas,
            # sessions wait without a request, and a full service must answer that it is
            max_ongoing_requests=2 * config.max_streams,
            graceful_shutdown_timeout_s=config.drain,
            ray_actor_options={"num_cpus": config.cpus},
            request_router_config=RequestRouterConfig(request_router_class=router),
        )
        .bind()
    )


def main(config: ReplicasConfig) -> None:
    """Serves on a local Ray cluster, or on the one that RAY_ADDRESS names, until told to end.

    Raises:
        InputError: Ray is not installed.
    """
    try:
        import ray
        from ray import serve
    except ImportError:
        raise InputError("Ray is missing: pip install -r requirements-serve.txt") from None
    ray.init(log_to_driver=False, ignore_reinit_error=True)
    serve.start(http_options={"host": config.host, "port": config.port})
    serve.run(deployment(config), name="scm")
    print(f"{config.replicas} replicas listen at http://{config.host}:{config.port}", flush=True)
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    told.wait()
    serve.shutdown()
