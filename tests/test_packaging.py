"""What is shipped and how it is set up: the wheel, the pins, the licence, make and CI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tangora.support.extras import EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not in a checkout")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def required(python: str) -> list[Requirement]:
    """What `make` installs, and the trackers; wandb is on request alone."""
    extras = {name: lines for name, lines in project()["optional-dependencies"].items() if name not in ("all", "wandb")}
    found = map(Requirement, [*project()["dependencies"], *(line for lines in extras.values() for line in lines)])
    return [r for r in found if r.marker is None or r.marker.evaluate({"python_version": python})]


def pins(python: str) -> dict[str, str]:
    """Package to version, for one version of Python."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            name = canonicalize_name(pin.name)
            assert name not in found, f"{name} is pinned twice for Python {python}"
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            found[name] = specifier.version
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_to_a_version_that_it_allows(python):
    pinned = pins(python)
    for requirement in required(python):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} has no pin for Python {python}"
        assert requirement.specifier.contains(pinned[name]), f"{requirement} does not allow {pinned[name]}"


def test_all_is_every_extra_that_a_recipe_may_need():
    extras = project()["optional-dependencies"]
    (everything,) = map(Requirement, extras["all"])
    assert everything.name == "tangora"
    assert everything.extras == extras.keys() - {"all", "dev", "tensorboard", "wandb"} - {
        "gguf",  # for `tangora export`, which no recipe does
        "quantized",  # has no wheels for some machines
        "ray",  # for runs on several hosts or GPUs
    }


def test_the_error_of_a_missing_extra_asks_for_what_the_extra_brings():
    brings = metadata.packages_distributions()
    assert EXTRAS.keys() == project()["optional-dependencies"].keys() - {"all", "dev"}
    for extra, modules in EXTRAS.items():
        declared = {canonicalize_name(Requirement(line).name) for line in project()["optional-dependencies"][extra]}
        found = {m: {canonicalize_name(name) for name in brings.get(m, [m])} for m in modules}
        assert all(names & declared for names in found.values()), extra
        assert declared <= set().union(*found.values()), extra


def test_torch_is_pinned_without_a_local_build():
    assert {pins(python)["torch"] for python in PYTHONS} == {"2.13.0"}


@pytest.mark.parametrize("python", PYTHONS)
def test_benchmarked_peers_agree_with_the_pins(python):
    lines = (ROOT / "benchmarks" / "peers.txt").read_text(encoding="utf-8").splitlines()
    for peer in (Requirement(line) for line in lines if line and not line.startswith("#")):
        pinned = pins(python).get(canonicalize_name(peer.name))
        assert pinned is None or peer.specifier.contains(pinned)


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.lstrip().startswith("Apache License\n")
    assert "9. Accepting Warranty or Additional Liability" in text
    assert project()["license"] == "Apache-2.0"


def test_the_wheel_brings_every_file_of_the_package(tmp_path):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    files = {
        path.relative_to(source).as_posix()
        for path in (source / "tangora").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"tangora/py.typed", "tangora/recipes/quickstart.yaml", "tangora/report/report.css"} <= files <= shipped
    assert any(name.endswith("licenses/LICENSE") for name in shipped)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("target", "runs"),
    [
        ("quickstart", "tangora run quickstart"),
        ("test", "-m pytest"),
        ("check", "ruff format --check"),
        ("lint", "deptry src"),
        ("check", "mypy"),
        ("check", "--cov"),
        ("bench-peers", "benchmarks/peers.txt"),
    ],
)
def test_make_sets_up_with_the_pins_and_runs(target, runs):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    command = ["make", "--dry-run", "--always-make", target]
    plan = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, env=environment).stdout
    assert runs in plan
    installs = [line for line in plan.splitlines() if "pip install" in line]
    assert installs
    assert all("-c constraints.txt" in line for line in installs)


def test_ci_is_executable_and_ends_with_the_readmes_test_command():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.read_text(encoding="utf-8").rstrip().endswith("make test")
    assert re.search(r"^\$ make test\b", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_hooks_are_local():
    yaml = pytest.importorskip("yaml")
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repo["repo"] for repo in hooks["repos"]] == ["local"]
    assert {hook["language"] for hook in hooks["repos"][0]["hooks"]} <= {"system", "pygrep", "fail"}
