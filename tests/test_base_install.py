"""The base install, without the packages of any extra: what it does, and what it says of the rest."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import save_file

import tangora
import toys
from tangora.support.extras import EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
pytestmark = pytest.mark.skipif(not PROJECT.is_file(), reason="not in a checkout")


def closure(lines: list[str]) -> dict[str, metadata.Distribution]:
    """Distributions that are installed with those of some requirements."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [(Requirement(line), "") for line in lines]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name in found and not requirement.extras:
            continue
        found[name] = metadata.distribution(requirement.name)
        lines = found[name].requires or []
        waiting += [(Requirement(line), extra) for line in lines for extra in ("", *requirement.extras)]
    return found


def dependencies(*extras: str) -> list[str]:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(line for name in extras for line in project["optional-dependencies"][name])]


def licence(distribution: metadata.Distribution) -> str:
    """What a distribution says of its licence, in the first place where it says anything."""
    about = distribution.metadata
    classifiers = [line for line in about.get_all("Classifier") or () if line.startswith("License :: ")]
    return about.get("License-Expression") or "; ".join(classifiers) or about.get("License") or ""


# MPL-2.0 (tqdm, through transformers; certifi, through clients of HTTP) asks only for changes of its own files.
# NVIDIA's libraries come with torch.
PERMISSIVE = re.compile(r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|HPND|Zlib|Unlicense|CNRI|MPL.2\.0", re.I)
COPYLEFT = re.compile(r"\bA?GPL|LGPL|General Public|EUPL|SSPL|Commons Clause|non-?commercial", re.I)


def test_what_a_user_installs_has_permissive_licences():
    extras = [name for name in EXTRAS if name not in ("tensorboard", "wandb")]
    found = {name: licence(one) for name, one in closure(dependencies(*extras)).items()}
    said = {name: text for name, text in found.items() if not name.startswith(("nvidia-", "cuda-"))}
    # Of an expression with OR one side is enough; the text of a whole licence is long and names others.
    wrong = {n: t[:200] for n, t in said.items() if not PERMISSIVE.search(t[:200]) or COPYLEFT.search(t[:200])}
    assert not wrong


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> dict[str, str]:
    """The environment of processes that see what ``pip install tangora`` installs, by links, and nothing else."""
    folder = tmp_path_factory.mktemp("site-packages")
    for distribution in closure(dependencies()).values():
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
    there = {path.name for path in folder.iterdir()}
    assert {"torch", "peft", "typer"} <= there
    assert not {"matplotlib", "datasets", "PIL", "sklearn", "pytest"} & there
    source = Path(tangora.__file__).parents[1]
    return os.environ | {"PYTHONPATH": f"{source}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[str]:
    """Two adapters, then a checkpoint and two that were tuned from it."""
    root = tmp_path_factory.mktemp("folders")
    for seed, name in enumerate("ab"):
        toys.lora(seed).save(root / name)
    for seed, name in enumerate(("base", "x", "y")):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps({"model_type": "toy"}))
        weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        save_file({"w": weights}, root / name / "model.safetensors")
    return [str(root / name) for name in ("a", "b", "base", "x", "y")]


def command(bare: dict[str, str], *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-S", "-m", "tangora", *arguments]  # -S: without the site-packages of this interpreter
    return subprocess.run(line, env=bare, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


def test_adapters_are_fused_and_verified(bare, folders, tmp_path):
    a, b, *_ = folders
    done = command(bare, "fuse", a, b, "--method", "ties", "--rank", "2", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "stock peft loads" in done.stdout + done.stderr
    assert tangora.load(tmp_path / "out").metadata.fused.method == "ties"


def test_checkpoints_are_merged(bare, folders, tmp_path):
    _, _, base, x, y = folders
    for name, arguments in (("merge", ["merge"]), ("full", ["fuse", "--full"])):
        out = tmp_path / name
        done = command(bare, *arguments, x, y, "--base", base, "--out", str(out))
        assert done.returncode == 0, done.stderr
        assert (out / "model.safetensors").is_file()


def test_folders_are_inspected_and_methods_listed(bare, folders):
    done = command(bare, "inspect", *folders[:2])
    assert done.returncode == 0, done.stderr
    assert "a LoRA adapter" in done.stdout
    listed = command(bare, "methods")
    assert listed.returncode == 0
    assert "ties" in listed.stdout


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["run", "quickstart", "--out", "new"], "train"),
        (["report", "run"], "report"),
        (["explore", "run"], "report"),
    ],
    ids=["run", "report", "explore"],
)
def test_the_rest_names_its_extra_in_one_line(bare, arguments, extra, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "scores.csv").write_text("mode\n")
    done = command(bare, *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert re.search(rf"pip install 'tangora\[[^']*{extra}", done.stderr), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
