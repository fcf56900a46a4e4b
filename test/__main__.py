"""The paper's evaluations, one command a row: python -m test causal|modernbert|… …"""

from test.options import (
    CausalTestConfig,
    FloorConfig,
    GuardConfig,
    LiveConfig,
    ModernBertTestConfig,
    RulesConfig,
)
from utils.cli import Command, run_command

COMMANDS = {
    "causal": Command(CausalTestConfig, "test.causal", ("row",)),
    "modernbert": Command(ModernBertTestConfig, "test.modernbert", ("row",)),
    "floor": Command(FloorConfig, "test.floor", ("method",)),
    "guard": Command(GuardConfig, "test.guard", ("row",)),
    "rules": Command(RulesConfig, "test.rules", ("metrics_dir",)),
    "live": Command(LiveConfig, "test.live", ("metrics_dir",)),
}

if __name__ == "__main__":
    run_command(COMMANDS)
