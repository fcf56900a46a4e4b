"""Commands of the monitor: python -m monitor show|calibrate …"""

from monitor.options import CalibrateConfig, ShowConfig
from utils.cli import Command, run_command

COMMANDS = {
    "show": Command(ShowConfig, "monitor.show"),
    "calibrate": Command(CalibrateConfig, "monitor.calibrate", ("metrics_dir",)),
}

if __name__ == "__main__":
    run_command(COMMANDS)
