"""Test the oldest and the newest allowed versions of torch, transformers and peft, each in an environment of its own.

    make compat                                    # both, with torch's oldest and newest too
    make compat ARGS='--torch torch==2.13.0+cpu'   # one torch for both, such as a build for CPUs

An environment is made beside the checkout (``.venv-compat-oldest``), and kept. Everything else has the versions that
pip chooses for it. A part of the suite runs, of every layer that calls these packages. The versions and what passed go
to ``benchmarks/results/compat.json`` and to the table in docs/install.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
RESULT, PAGE = ROOT / "benchmarks" / "results" / "compat.json", ROOT / "docs" / "install.md"
VARIED = ("torch", "transformers", "peft")
TOOLS = ("pytest", "pytest-timeout", "hypothesis", "pyyaml", "packaging")
EXTRAS = "train,report,text,lm,vision,gguf"
TESTS = (
    "tests/test_api.py",
    "tests/fusion/test_verification.py",
    "tests/modes/test_task_type.py",
    "tests/serving/test_serving_page.py",
    "tests/tangent/test_training.py",
    "tests/tasks/test_classifiers_page.py",
    "tests/tasks/test_language_page.py",
)


def main() -> None:
    """Test both ends, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", nargs="+", choices=["oldest", "newest"], default=["oldest", "newest"])
    parser.add_argument("--torch", help="one requirement for both ends, such as torch==2.13.0+cpu")
    parser.add_argument("--folder", type=Path, default=ROOT, help="where the environments are made")
    parser.add_argument("--pip", default="", help="further options of pip")
    given = parser.parse_args()
    before = json.loads(RESULT.read_text(encoding="utf-8"))["edges"] if RESULT.is_file() else {}
    found = {edge: tested(edge, given.folder, given.torch, given.pip.split()) for edge in given.edges}
    edges = {edge: {**before, **found}[edge] for edge in ("oldest", "newest") if edge in {**before, **found}}
    document = {"command": "make compat", "tests": list(TESTS), "edges": edges}
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    marked = re.compile(r"(<!-- compat:begin -->\n).*?(<!-- compat:end -->)", re.DOTALL)
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(marked.sub(lambda match: match[1] + table(edges) + match[2], text), encoding="utf-8")
    print(table(edges), end="")
    sys.exit(any(edge["failed"] or not edge["passed"] for edge in found.values()))


def requirements(edge: str, torch: str | None) -> Iterator[str]:
    """Yield what pip installs beside Tangora for one end of the ranges."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    for requirement in map(Requirement, declared):
        if requirement.name not in VARIED:
            continue
        if requirement.name == "torch" and torch is not None:
            yield torch
        elif edge == "newest":
            yield str(requirement)
        else:
            (lower,) = [one.version for one in requirement.specifier if one.operator == ">="]
            yield f"{requirement.name}=={lower}"


def tested(edge: str, folder: Path, torch: str | None, options: list[str]) -> dict[str, Any]:
    """Install one end, run the tests there, and return the versions and what passed."""
    place = folder / f".venv-compat-{edge}"
    python = place / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--upgrade", *options]
    subprocess.run([*pip, *requirements(edge, torch), *TOOLS, f"{ROOT}[{EXTRAS}]"], check=True)
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(ran.stdout[-3000:])
    ask = f"from importlib.metadata import version; print(*[version(name) for name in {VARIED!r}])"
    versions = subprocess.run([str(python), "-c", ask], check=True, capture_output=True, text=True).stdout.split()
    return {"python": platform.python_version(), **dict(zip(VARIED, versions, strict=True)), **counted(ran.stdout)}


def counted(output: str) -> dict[str, int]:
    """Return how many tests passed, failed and were skipped, by pytest's marks.

    >>> counted("..s.  [ 80%]\\nFE  [100%]\\n")
    {'passed': 3, 'failed': 2, 'skipped': 1}
    """
    marks = "".join(re.findall(r"^([.sFExX]+)\s+\[ *\d+%\]$", output, re.MULTILINE))
    failed = sum(map(marks.count, "FE"))
    return {"passed": marks.count("."), "failed": failed, "skipped": marks.count("s")}


def table(edges: dict[str, dict[str, Any]]) -> str:
    """Return the lines between the markers."""
    rows = [("", "Python", *VARIED, "tests passed", "failed")]
    rows.append(tuple("---" for _ in rows[0]))
    for name, edge in edges.items():
        rows.append((name, edge["python"], *(edge[one] for one in VARIED), str(edge["passed"]), str(edge["failed"])))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    main()
