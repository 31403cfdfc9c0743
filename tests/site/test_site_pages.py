"""The pages of the site that teach: their blocks run, in a folder like the reader's, and print what they say."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

import plugins
import tangora
from loras import peft_lora
from tangora.cli.commands import app
from tangora.config.recipe import bundled_recipes
from tangora.testing import check_method
from workshop import done

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HEADS = re.compile(r"^#+ (.*)$", re.MULTILINE)


def page(name):
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def blocks(name, language):
    return re.findall(rf"```{language}\n(.*?)```", page(name), re.DOTALL)


def commands(name):
    return [
        line[2:] for block in blocks(name, "console") for line in block.splitlines() if line.startswith("$ tangora ")
    ]


def refused(line):
    """What a command that fails prints, in one line."""
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, shlex.split(line)[1:])
    assert result.exception is not None
    return f"error: {result.exception}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_llama):
    """Three adapters of one decoder."""
    here = tmp_path_factory.mktemp("site")
    (here / "smollm").symlink_to(tiny_llama)
    for seed, name in enumerate(("code", "math", "chat")):
        torch.manual_seed(seed)
        peft_lora(here / "smollm", here / "adapters" / name, r=4, seed=seed, name="smollm")
    return here


def test_the_first_fusion(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    inspect, fuse = commands("first-fusion")
    assert "can be fused with --space delta" in done(*shlex.split(inspect)[1:]).output
    assert "verified" in done(*shlex.split(fuse)[1:]).output
    for block in blocks("first-fusion", "python"):
        exec(compile(block, "docs/first-fusion.md", "exec"), {})
    assert capsys.readouterr().out.split() == ["12", "ties"]


@pytest.mark.parametrize("name", ["averaging-factors", "spaces"])
def test_pages_print_what_they_say(name, capsys):
    names: dict = {}
    for block in blocks(name, "python"):
        exec(compile(block, f"docs/{name}.md", "exec"), names)
    assert capsys.readouterr().out == "".join(blocks(name, "text"))


def test_factors_are_refused_as_the_page_says(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (line,) = commands("averaging-factors")
    assert refused(line) in page("averaging-factors")


def test_the_numbers_are_those_of_a_run(workshop, monkeypatch, capsys):
    monkeypatch.chdir(workshop)
    (block,) = blocks("numbers", "python")
    exec(compile(block, "docs/numbers.md", "exec"), {})
    assert capsys.readouterr().out == blocks("numbers", "text")[0]


def test_a_run_is_given_again(workshop, tmp_path, monkeypatch):
    shutil.copytree(workshop, tmp_path / "shop")
    monkeypatch.chdir(tmp_path / "shop")
    again, jobs, changed = commands("resume")
    before = Path("run/scores.csv").read_bytes()
    done(*shlex.split(again)[1:])
    assert Path("run/scores.csv").read_bytes() == before
    assert "yes" in done(*shlex.split(jobs)[1:]).output
    assert refused(changed) in page("resume")


def test_the_plug_in_of_the_page_is_the_example(tmp_path, folder, monkeypatch):
    example = ROOT / "examples" / "plugins" / "method"
    (code,), (project,) = blocks("plug-ins", "python"), blocks("plug-ins", "toml")
    assert code == (example / "tangora_median.py").read_text(encoding="utf-8")
    assert project == (example / "pyproject.toml").read_text(encoding="utf-8")
    monkeypatch.chdir(folder)
    place = plugins.install(tmp_path / "installed", "method")
    from tangora.methods import _registry

    with plugins.installed(place):
        try:
            check_method("median")
            (fuse,) = [line for line in commands("plug-ins") if " fuse " in line]
            line = fuse.replace("sst2", "code").replace("trec6", "math").replace("snips", "chat")
            done(*shlex.split(line.replace("--out fused", "--out median"))[1:])
            assert tangora.load("median").metadata.fused.method == "median"
        finally:
            _registry._METHODS.pop("median", None)


def test_every_kind_of_plug_in_is_listed():
    from tangora.support import seams

    groups = {getattr(seams, name).group for name in seams.__all__} | {"tangora.methods"}
    listed = re.findall(
        r"^\|.*\| `(tangora\.\w+)` \|.*`(check_\w+)`.*\]\(\.\./(examples/\S+)\) \|$", page("plug-ins"), re.M
    )
    assert {group for group, _, _ in listed} == groups
    for _, check, example in listed:
        assert hasattr(tangora.testing, check)
        assert (ROOT / example / "pyproject.toml").is_file()


def test_variables_are_those_that_the_code_reads():
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    read = set(re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"", source)) | set(re.findall(r"\"(TANGORA_\w+)\"", source))
    libraries = set(re.findall(r"\b((?:HF|TOKENIZERS|TRANSFORMERS)_[A-Z_]{3,})\b", source))
    assert {"TANGORA_CACHE", "WORLD_SIZE"} <= read
    text = page("environment")
    assert not [name for name in sorted(read | libraries) if f"`{name}" not in text]


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.stem)
def test_links_between_pages_lead_somewhere(path):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if ":" in target:
            continue
        file = path.parent / target if target else path
        assert file.exists(), f"{target} in {path.name}"
        if anchor and file.suffix == ".md":
            heads = HEADS.findall(file.read_text(encoding="utf-8"))
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{target}#{anchor} in {path.name}"


def test_the_first_run_shows_a_bundled_recipe():
    lines = commands("first-run")
    assert lines[0] == "tangora run quickstart"
    assert "quickstart" in bundled_recipes()
