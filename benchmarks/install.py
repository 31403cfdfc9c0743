"""What a base installation weighs, and how long its imports take: the table in docs/install.md.

    python benchmarks/install.py    # measures its own environment; writes results/install.json and docs/install.md

Sizes are the bytes of the files that each distribution lists, for Tangora and all that it requires without extras.
A command is timed in fresh processes, the median of seven, as processor time, which other work on the machine changes
little; ``-X importtime`` names what takes the time.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
RESULT, PAGE = ROOT / "benchmarks" / "results" / "install.json", ROOT / "docs" / "install.md"
TIMED = {
    "python": ["-c", "pass"],
    "import tangora": ["-c", "import tangora"],
    "import torch": ["-c", "import torch"],
    "tangora.fuse": ["-c", "import tangora; tangora.fuse"],
    "tangora --help": ["-m", "tangora", "--help"],
}
ROUNDS = 7


def main() -> None:
    """Measure, and write the result and the table."""
    result = measured()
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    marked = re.compile(r"(<!-- install:begin -->\n).*?(<!-- install:end -->)", re.DOTALL)
    PAGE.write_text(marked.sub(lambda match: match[1] + table(result) + match[2], text), encoding="utf-8")


def measured() -> dict[str, Any]:
    """Return sizes in bytes by distribution, and seconds by command."""
    return {
        "command": "python benchmarks/install.py",
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": {name: metadata.version(name) for name in ("tangora", "torch", "peft", "numpy")},
        "bytes": sizes("tangora"),
        "seconds": {name: seconds(arguments) for name, arguments in TIMED.items()},
        "slowest": slowest(),
    }


def sizes(package: str) -> dict[str, int]:
    """Return the bytes of a package and of each that it requires without extras, by name, largest first."""
    found: dict[str, int] = {}
    waiting = [Requirement(package)]
    while waiting:
        name = canonicalize_name(waiting.pop().name)
        if name in found:
            continue
        distribution = metadata.distribution(name)
        files = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]
        found[name] = sum(path.stat().st_size for path in files if path.is_file())
        required = map(Requirement, distribution.requires or ())
        waiting += [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def seconds(arguments: list[str]) -> float:
    """Return the median processor time of a fresh process, after one that fills the caches."""
    taken = []
    for _ in range(ROUNDS + 1):
        before = os.times()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = os.times()
        user, system = (getattr(after, key) - getattr(before, key) for key in ("children_user", "children_system"))
        taken.append(user + system)
    return round(statistics.median(taken[1:]), 3)


def slowest() -> dict[str, float]:
    """Return the three top-level packages whose modules take ``tangora --help`` most time, in milliseconds."""
    command = [sys.executable, "-X", "importtime", "-m", "tangora", "--help"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stderr.splitlines()
    own: dict[str, float] = {}
    for line in lines:
        if found := re.fullmatch(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", line):
            package = found[2].partition(".")[0]
            own[package] = own.get(package, 0.0) + int(found[1]) / 1000
    top = sorted(own.items(), key=lambda item: -item[1])[:3]
    return {name: round(taken, 1) for name, taken in top}


def table(result: dict[str, Any]) -> str:
    """Return the lines between the markers."""
    total = sum(result["bytes"].values())
    torch = result["bytes"]["torch"]
    times = "".join(f"| `{name}`, processor time | {taken:.2f} s |\n" for name, taken in result["seconds"].items())
    largest = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in list(result["bytes"].items())[:5])
    return (
        f"| measured on {result['machine']}, Python {result['python']}, torch {result['versions']['torch']} | |\n"
        "|---|---:|\n"
        f"| the base install, {len(result['bytes'])} distributions | {total / 1e6:.0f} MB |\n"
        f"| without torch | {(total - torch) / 1e6:.0f} MB |\n"
        f"| Tangora itself | {result['bytes']['tangora'] / 1e6:.1f} MB |\n"
        f"{times}"
        f"\nThe largest: {largest}.\n"
    )


if __name__ == "__main__":
    main()
