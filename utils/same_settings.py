"""One folder, one set of settings: the first run keeps its own, later runs must have the same.

For scripts that leave finished work alone (scripts/run-table.sh, run-ablations.sh): what was made
with other settings would go into their tables unnoticed.

    python -m utils.same_settings FILE NAME=VALUE …
"""

import sys
from pathlib import Path

from utils.files import InputError, write_bytes


def _parse(lines: list[str]) -> dict[str, str]:
    """Parts names from values; white space counts as one blank."""
    pairs = (" ".join(line.split()).partition("=") for line in lines if line.strip())
    return {name: value.strip() for name, _, value in pairs}


def hold(path: Path, settings: list[str]) -> None:
    """Compares settings with those kept in a file, and keeps those that are new.

    A setting that the file lacks is of a newer version of a script, or of a part left out so far.
    What is kept in a folder without anything else binds nobody: nothing was made with it.

    Args:
        path: The file, one name=value a line; other files "settings…" may lie beside it.
        settings: name=value each.

    Raises:
        InputError: One differs, or the file cannot be read.
    """
    now, kept = _parse(settings), {}
    if any(not one.name.startswith("settings") for one in path.parent.glob("[!.]*")):
        try:
            kept = _parse(path.read_text("utf-8").splitlines())
        except FileNotFoundError:
            pass  # an older version made what is there
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from None
    for name, value in now.items():
        if kept.get(name, value) != value:
            raise InputError(
                f"{path}: {name}: it was '{kept[name]}', not '{value}'; take another folder, or"
                " remove that line if nothing was made with it yet"
            )
    if now.keys() - kept.keys():
        lines = [f"{name}={value}\n" for name, value in (kept | now).items()]
        write_bytes(path, "".join(lines).encode())


if __name__ == "__main__":
    try:  # not by utils.cli, whose parser takes seconds to load
        hold(Path(sys.argv[1]), sys.argv[2:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
