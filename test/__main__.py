"""The paper's evaluations, one command a row: python -m test causal|modernbert|… …"""

from test import align_options, options, prompt_options
from utils.cli import Command, run_command

COMMANDS = {
    "causal": Command(options.CausalTestConfig, "test.causal", ("row",)),
    "modernbert": Command(options.ModernBertTestConfig, "test.modernbert", ("row",)),
    "baselines": Command(options.BaselineConfig, "test.baselines", ("method",)),
    "prompts": Command(prompt_options.ModeratorTestConfig, "test.prompts"),
    "prompt-curves": Command(prompt_options.PromptCurvesConfig, "test.prompt_curves"),
    "prompt-baselines": Command(prompt_options.PromptBaselineConfig, "test.prompts", ("method",)),
    "with-monitor": Command(prompt_options.WithMonitorConfig, "test.with_monitor"),
    "align": Command(align_options.AlignTestConfig, "test.align"),
    "guard": Command(options.GUARDS, "test.guard"),
    "rules": Command(options.RulesConfig, "test.rules", ("metrics_dir",)),
    "sources": Command(options.SourcesConfig, "test.sources", ("metrics_dirs",)),
    "live": Command(options.LiveConfig, "test.live", ("metrics_dir",)),
}

if __name__ == "__main__":
    run_command(COMMANDS)
