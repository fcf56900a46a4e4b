"""The gateway: python -m serve gateway|replicas …"""

from serve.options import GatewayConfig, ReplicasConfig
from utils.cli import Command, run_command

COMMANDS = {
    "gateway": Command(GatewayConfig, "serve.serving"),
    "replicas": Command(ReplicasConfig, "serve.replicas"),
}

if __name__ == "__main__":
    run_command(COMMANDS)
