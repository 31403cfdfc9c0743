"""What README, docs/fusing.md and docs/l-lora.md show runs: blocks of Python, recipes, commands and what they print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import tiny
from loras import peft_lora
from tangora.config.recipe import bundled_recipes, load_recipe
from workshop import done

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FUSING = (ROOT / "docs" / "fusing.md").read_text(encoding="utf-8")
LINEARIZED = (ROOT / "docs" / "l-lora.md").read_text(encoding="utf-8")
SESSION = re.search(r"## Three adapters in one\n\n```console\n(.*?)```", README, re.DOTALL)
WORDS = ("red", "green", "blue", "good", "bad", "great")


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.fixture(scope="module")
def desk(tmp_path_factory, tiny_bert) -> Path:
    """The folder in which a reader of the README would be: a decoder, three adapters of it, an encoder, three files."""
    folder = tmp_path_factory.mktemp("desk")
    tiny.llama(folder / "smollm")
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    for seed, (name, rank, targets) in enumerate(
        [("code", 16, attention), ("math", 8, attention[::2]), ("chat", 8, attention[::2])]
    ):
        place = folder / "adapters" / name
        torch.manual_seed(seed)  # of A
        peft_lora(folder / "smollm", place, r=rank, targets=targets, seed=seed, name="smollm", scale=0.02)
    (folder / "bert").symlink_to(tiny_bert)
    (folder / "rows").mkdir()
    for k, name in enumerate(("reviews", "topics", "urgency")):
        rows = [f"this {WORDS[(i + k) % 6]} photo {i % 4},{'yes' if (i + k) % 2 else 'no'}" for i in range(60)]
        (folder / "rows" / f"{name}.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    (folder / "desk.yaml").write_text(blocks(README, "yaml")[0], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Three adapters of a network of two layers."""
    folder = tmp_path_factory.mktemp("fusing")
    for seed, name in enumerate(("sst2", "trec6", "snips")):
        torch.manual_seed(seed)
        base = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["0", "2"]))
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                nn.init.normal_(parameter)
        model.save_pretrained(folder / "adapters" / name)
    return folder


def rounded(line):
    """A line without the digits that rounding and the clock decide."""
    return re.sub(r"\d\.\de-\d\d|(?<=verified in )\S+", "…", line)


def test_the_session_prints_what_it_shows(desk, monkeypatch):
    assert SESSION
    monkeypatch.chdir(desk)
    commands = SESSION[1].split("$ ")[1:]
    assert len(commands) == 2
    for command in commands:
        line, *shown = command.splitlines()
        printed = done(*shlex.split(line)[1:]).output.replace(str(desk), "/home/me").splitlines()
        assert len(printed) == len(shown)
        for one, said in zip(printed, shown, strict=True):
            assert rounded(one).startswith(rounded(said))


def test_the_result_of_the_session_loads(desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    if not (desk / "fused").exists():
        done("fuse", "adapters/code", "adapters/math", "adapters/chat", "--rank", "16", "--out", "fused")
    (code,) = blocks(README, "python")
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["model"].peft_config["default"].r == 16


def test_the_recipe_runs_to_an_answer(desk, monkeypatch):
    monkeypatch.chdir(desk)
    (text,) = blocks(README, "yaml")
    assert len(text.splitlines()) == 15
    assert len(load_recipe("desk.yaml").tasks) == 3
    dry, run, predict = re.findall(r"^\$ tangora (\w+ (?:desk|runs).*?)(?:  +#.*)?$", README, re.MULTILINE)
    assert "3 tasks" in done(*shlex.split(dry)).output
    fewer = ["--set", "training.steps=2", "--set", "evaluation.bootstrap=100", "--set", "fusion.subsets.sizes=[3]"]
    fewer += ["--set", "fusion.methods.polished.polish.steps=5"]
    done(*shlex.split(run), *fewer)
    assert (desk / "runs" / "desk" / "report.html").is_file()
    assert re.search(r"\b(yes|no)\b", done(*shlex.split(predict)).output)


@pytest.mark.parametrize("code", blocks(FUSING, "python") + blocks(LINEARIZED, "python"))
def test_python_blocks_run(adapters, monkeypatch, capsys, code):
    monkeypatch.chdir(adapters)
    exec(compile(code, "docs", "exec"), {})
    assert capsys.readouterr().out


def test_shell_lines_run(adapters, monkeypatch):
    monkeypatch.chdir(adapters)
    lines = [line for block in blocks(FUSING, "sh") for line in block.splitlines()]
    assert lines
    for line in lines:
        assert line.startswith("tangora ")
        done(*shlex.split(line)[1:])


def test_the_table_of_methods_is_the_registrys():
    from tangora.methods import table

    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- methods: .*? -->\n(.*?)<!-- /methods -->", page, re.DOTALL)
    assert found, "the markers are there"
    assert found.group(1).strip() == table().strip(), "write it again: python -m tangora.methods docs/methods.md"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_inside_the_repository_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text(encoding="utf-8"))
    assert targets
    for target in targets:
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_it_is_short():
    assert len(README.splitlines()) <= 125


@pytest.mark.parametrize("document", [README, *[p.read_text() for p in (ROOT / "docs").glob("*.md")]])
def test_recipes_that_are_named_exist(document):
    for name in re.findall(r"tangora (?:run|finetune) ([a-z0-9-]+)(?![\w./-])", document):
        assert name in bundled_recipes(), name
