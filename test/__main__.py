"""The paper's evaluations, one command a row: python -m test causal|modernbert|… …"""

from test.options import (
    GUARDS,
    BaselineConfig,
    CausalTestConfig,
    LiveConfig,
    ModernBertTestConfig,
    RulesConfig,
)
from utils.cli import Command, run_command

COMMANDS = {
    "causal": Command(CausalTestConfig, "test.causal", ("row",)),
    "modernbert": Command(ModernBertTestConfig, "test.modernbert", ("row",)),
    "baselines": Command(BaselineConfig, "test.baselines", ("method",)),
    "guard": Command(GUARDS, "test.guard"),
    "rules": Command(RulesConfig, "test.rules", ("metrics_dir",)),
    "live": Command(LiveConfig, "test.live", ("metrics_dir",)),
}

if __name__ == "__main__":
    run_command(COMMANDS)
