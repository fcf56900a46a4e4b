"""The gateway: python -m serve gateway …"""

from serve.options import GatewayConfig
from utils.cli import Command, run_command

COMMANDS = {"gateway": Command(GatewayConfig, "serve.serving")}

if __name__ == "__main__":
    run_command(COMMANDS)
