"""Rewrites the numbers of README.md, between its markers, from a run of the demo.

`make readme` calls it after `make demo`: both commands then print the finished run's tables.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    ("landscape-train --config examples/demo.toml", "landscape_cli.train"),
    ("landscape-probe --quick runs/demo", "landscape_cli.probe"),
)


def demo_tables() -> str:
    """What the demo's two commands print, each under its command."""
    parts = []
    for command, module in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-m", module, *command.split()[1:]],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        parts.append(f"$ {command}\n{done.stdout.rstrip()}")
    return "```text\n" + "\n\n".join(parts) + "\n```"


def main() -> None:
    readme = ROOT / "README.md"
    before = readme.read_text(encoding="utf-8")
    pattern = re.compile(r"(<!-- demo:begin -->\n).*?(<!-- demo:end -->)", re.DOTALL)
    after, num_places = pattern.subn(lambda m: f"{m[1]}{demo_tables()}\n{m[2]}", before)
    if num_places != 1:
        raise SystemExit("README.md: expected the demo's two markers once")
    readme.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
