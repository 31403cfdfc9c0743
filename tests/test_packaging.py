"""What is shipped and how it is set up: the wheel, the pins, the licence, make and CI."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
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
        "fast",  # a sixth of the base install, for merges of large checkpoints alone
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
def test_the_tools_of_the_site_are_pinned(python):
    lines = (ROOT / "docs" / "_code" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    for tool in (Requirement(line) for line in lines if line and not line.startswith("#")):
        exact = [one.operator for one in tool.specifier] == ["=="]
        assert exact != (canonicalize_name(tool.name) in pins(python)), f"{tool.name}: one pin, in one file"


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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel that is built of the unpacked source archive, as an installer without a wheel would."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run([*build, "-t", "sdist"], cwd=ROOT, check=True, capture_output=True, timeout=120)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        source.extractall(folder, filter="data")
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    for name in ("LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt", "tests/conftest.py", "docs/install.md"):
        assert (unpacked / name).is_file(), name
    subprocess.run([*build, "-t", "wheel"], cwd=unpacked, check=True, capture_output=True, timeout=120)
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_works_where_the_checkout_is_not(wheel, tmp_path):
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    subprocess.run([*install, "--disable-pip-version-check", str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = (
        "import tangora, tangora.cli, sys; from importlib.metadata import version; "
        "print(tangora.__file__, version('tangora')); sys.argv = ['tangora', 'recipe', 'list', '--json']; "
        "tangora.cli.main()"
    )
    command = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-c", code]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    first, _, listed = ran.stdout.partition("\n")
    assert first == f"{tmp_path / 'tangora' / '__init__.py'} {project()['version']}"
    assert "quickstart" in listed


def test_the_wheel_brings_every_file_of_the_package(wheel):
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
        ("docs", "mkdocs build"),
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


def test_the_version_has_one_place():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    version = project()["version"]
    assert citation["version"] == version
    assert f"version = {{{version}}}" in (ROOT / "docs" / "citing.md").read_text(encoding="utf-8")
    assert citation["license"] == project()["license"]
    found = [path for path in (ROOT / "src").rglob("*.py") if f'"{version}"' in path.read_text(encoding="utf-8")]
    assert found == []


def test_the_changelog_begins_with_what_is_not_released_and_then_this_version():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    heads = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heads[:2] == ["[Unreleased]", f"[{project()['version']}] - {citation['date-released']}"]


def test_a_forge_runs_what_ci_runs():
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["test"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    assert tuple(job["strategy"]["matrix"]["python"]) == PYTHONS
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"):
        ids = [part["id"] for part in yaml.safe_load(form.read_text(encoding="utf-8"))["body"]]
        assert len(ids) == len(set(ids)) >= 3


def test_both_ends_of_the_ranges_are_what_compat_installs():
    import compat

    oldest, newest = (list(compat.requirements(edge, None)) for edge in ("oldest", "newest"))
    assert [Requirement(line).name for line in oldest] == ["peft", "torch", "transformers"]
    for lower, whole in zip(map(Requirement, oldest), map(Requirement, newest), strict=True):
        (exact,) = lower.specifier
        assert exact.operator == "=="
        assert whole.specifier.contains(exact.version)
    assert list(compat.requirements("oldest", "torch==2.13.0+cpu"))[1] == "torch==2.13.0+cpu"
    assert compat.counted("..s. [ 80%]\nFE    [100%]\n") == {"passed": 3, "failed": 2, "skipped": 1}
    assert all((ROOT / name).is_file() for name in compat.TESTS)
    with pytest.raises(SystemExit, match=r"--python no-such-python: it cannot be run .* give an interpreter's path"):
        compat.version_of("no-such-python")


def test_the_table_of_versions_is_the_measured_one():
    import compat

    edges = json.loads(compat.RESULT.read_text(encoding="utf-8"))["edges"]
    assert compat.table(edges) in compat.PAGE.read_text(encoding="utf-8")
    assert list(edges) == list(compat.in_order(edges))
    mixed = {"newest/3.9": {}, "oldest/3.10": {}, "oldest/3.9": {}}
    assert list(compat.in_order(mixed)) == ["oldest/3.9", "oldest/3.10", "newest/3.9"]


def test_hooks_are_local():
    yaml = pytest.importorskip("yaml")
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repo["repo"] for repo in hooks["repos"]] == ["local"]
    assert {hook["language"] for hook in hooks["repos"][0]["hooks"]} <= {"system", "pygrep", "fail"}
