"""Test the oldest and the newest allowed versions of torch, transformers and peft, each in an environment of its own.

    make compat                                    # both, with torch's oldest and newest too
    make compat ARGS='--torch torch==2.13.0+cpu'   # one torch for both, such as a build for CPUs
    make compat ARGS='--edges oldest --python python3.10'               # one end, on another Python
    make compat ARGS='--edges newest --python python3.12 python3.13'    # one end on each of two

An environment is made beside the checkout for each end and Python (``.venv-compat-oldest-3.10``), and kept. Everything
else has the versions that pip chooses for it. Every module is imported, and a part of the suite runs, of every layer
that calls these packages. The versions and what passed go to ``benchmarks/results/compat.json`` and to the table in
docs/install.md, a row for each end and Python; rows of earlier calls stay.
"""

from __future__ import annotations

import argparse
import json
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
EDGES = ("oldest", "newest")
TESTS = (
    "tests/test_api.py",
    "tests/fusion/test_verification.py",
    "tests/modes/test_task_type.py",
    "tests/serving/test_serving_page.py",
    "tests/tangent/test_training.py",
    "tests/tasks/test_classifiers_page.py",
    "tests/tasks/test_language_page.py",
)
# Run in an environment. What fails in there for want of a package that no extra of EXTRAS brings is left out.
IMPORTS = """
import importlib, json, pkgutil, sys, traceback
import tangora
imported, broken = 0, []
for module in pkgutil.walk_packages(tangora.__path__, "tangora."):
    if module.name.endswith(".__main__"):
        continue
    try:
        importlib.import_module(module.name)
        imported += 1
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in {"numba", "ray"}
        if not absent:
            traceback.print_exc()
            broken.append(module.name)
print(json.dumps({"imported": imported, "broken": broken}))
"""


def main() -> None:
    """Test each end on each Python, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", nargs="+", choices=EDGES, default=EDGES)
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters, each for every end")
    parser.add_argument("--torch", help="one requirement for both ends, such as torch==2.13.0+cpu")
    parser.add_argument("--folder", type=Path, default=ROOT, help="where the environments are made")
    parser.add_argument("--pip", default="", help="further options of pip")
    given = parser.parse_args()
    pythons = {python: version_of(python) for python in given.python}
    document = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"edges": {}}
    document = {"command": "make compat", "tests": list(TESTS), "edges": document["edges"]}
    found = {}
    for edge in given.edges:
        for python, version in pythons.items():
            name = f"{edge}/{version.rpartition('.')[0]}"
            found[name] = tested(edge, python, version, given.folder, given.torch, given.pip.split())
            document["edges"] = in_order({**document["edges"], **found})
            written(document)
    print(table(document["edges"]), end="")
    sys.exit(any(edge["failed"] or edge["broken"] or not edge["passed"] for edge in found.values()))


def version_of(python: str) -> str:
    """Return the version of an interpreter, such as 3.10.13; end with an error if it cannot be run."""
    try:
        ask = [python, "-c", "import platform; print(platform.python_version())"]
        return subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"--python {python}: it cannot be run ({error}); give an interpreter's path, or a name on PATH")


def in_order(edges: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the rows with the oldest end first, and at each end the oldest Python first.

    >>> list(in_order({"newest/3.9": {}, "oldest/3.12": {}, "oldest/3.9": {}}))
    ['oldest/3.9', 'oldest/3.12', 'newest/3.9']
    """

    def place(name: str) -> tuple[int, list[int]]:
        edge, _, python = name.partition("/")
        return EDGES.index(edge), [int(part) for part in python.split(".")]

    return {name: edges[name] for name in sorted(edges, key=place)}


def written(document: dict[str, Any]) -> None:
    """Write the results, and the table between the markers of the page."""
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    marked = re.compile(r"(<!-- compat:begin -->\n).*?(<!-- compat:end -->)", re.DOTALL)
    text, rows = PAGE.read_text(encoding="utf-8"), table(document["edges"])
    PAGE.write_text(marked.sub(lambda match: match[1] + rows + match[2], text), encoding="utf-8")


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


def tested(
    edge: str, interpreter: str, version: str, folder: Path, torch: str | None, options: list[str]
) -> dict[str, Any]:
    """Install one end, import everything and run the tests there, and return the versions and what passed."""
    place = folder / f".venv-compat-{edge}-{version.rpartition('.')[0]}"
    python = str(place / "bin" / "python")
    if not Path(python).exists():
        subprocess.run([interpreter, "-m", "venv", str(place)], check=True)
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--upgrade", *options]
    subprocess.run([*pip, *requirements(edge, torch), *TOOLS, f"{ROOT}[{EXTRAS}]"], check=True)
    asked = subprocess.run([python, "-c", IMPORTS], cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    imports = json.loads(asked.stdout.splitlines()[-1])
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(ran.stdout[-3000:])
    ask = f"from importlib.metadata import version; print(*[version(name) for name in {VARIED!r}])"
    versions = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.split()
    return {"python": version, **dict(zip(VARIED, versions, strict=True)), **imports, **counted(ran.stdout)}


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
    rows = [("", "Python", *VARIED, "modules imported", "tests passed", "failed")]
    rows.append(tuple("---" for _ in rows[0]))
    for name, edge in edges.items():
        modules = f"{edge['imported']} of {edge['imported'] + len(edge['broken'])}"
        numbers = (modules, str(edge["passed"]), str(edge["failed"]))
        rows.append((name.partition("/")[0], edge["python"], *(edge[one] for one in VARIED), *numbers))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    main()
