"""Code of a model's repository runs if this call asks for it; what a file says is not enough, whoever wrote it."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import get_type_hints

import pytest

import tangora
from tangora.cli import commands
from tangora.config.recipe import load_recipe
from tangora.errors import ModelError
from tangora.runs.context import Context
from tangora.runs.executors import processes
from tangora.support.seams import FAMILIES

OPTION = "--trust-code"
WITHOUT_RECIPE = {"predict"}  # an adapter does not state that its base has code


@pytest.fixture
def run(short_copy, monkeypatch):
    """A finished run whose recipe asks for its model's code; loading a base ends with what was agreed to."""
    path = short_copy / "recipe.yaml"
    text = path.read_text()
    assert text.count("trust_remote_code: false") == 1
    path.write_text(text.replace("trust_remote_code: false", "trust_remote_code: true"))

    def load(self, config):
        raise ModelError("would load", got=config.trust_remote_code)

    family = FAMILIES.get(load_recipe(path).base.family)
    monkeypatch.setattr(type(family), "load", load)
    return short_copy


@pytest.fixture
def tangora_main(monkeypatch, capsys):
    """Run a command in this process, and return what it writes."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tangora", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            commands.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out + captured.err

    return call


def lines(run):
    """A command line for each command that loads a base."""
    recipe, expert = run / "recipe.yaml", next(run.glob("adapters/*/*"))
    mode, task, out = expert.parent.name, expert.name, [run.parent / f"out-{i}" for i in range(7)]
    return {
        "run": ["run", recipe, "--out", out[0]],
        "run --dry-run": ["run", recipe, "--out", out[1], "--dry-run"],
        "resumed": ["run", recipe, "--out", run],
        "finetune": ["finetune", recipe, "--task", task, "--mode", mode, "--out", out[2]],
        "evaluate": ["evaluate", recipe, expert],
        "statistics": ["statistics", recipe, expert, "--task", task, "--out", run.parent / "s.safetensors"],
        "distill": ["distill", recipe, expert, "--mode", mode, "--out", out[3]],
        "polish": ["polish", expert, "--recipe", recipe, "--out", out[4]],
        "fuse": ["fuse", expert, "--method", "wemoe", "--recipe", recipe, "--out", out[5]],
        "tune": ["tune", expert, "--recipe", recipe, "--out", out[6]],
        "predict": ["predict", expert, "--text", "a text"],
        "jobs": ["jobs", run],
        "job": ["job", run, "x"],
        "analyze": ["analyze", run, "--only", "linearity"],
    }


def test_every_command_that_loads_a_base(run, tangora_main):
    for name, line in lines(run).items():
        code, text = tangora_main(*line)
        said = "would load, got False" if name in WITHOUT_RECIPE else "runs code from the model's repository"
        assert (code, said in text) == (2, True), (name, text)
        code, text = tangora_main(*line, OPTION)
        assert (code, "would load, got True" in text) == (2, True), (name, text)


def test_the_list_of_commands_is_complete(run):
    """Each of the others has no such option: it loads no base."""
    names = [name for panel in commands.LISTED.values() for name in panel]
    options = {name: get_type_hints(commands.command(name).work)["options"] for name in names}
    having = {name for name, kind in options.items() if "trust_remote_code" in {one.name for one in fields(kind)}}
    assert having == {line[0] for line in lines(run).values()}


def test_a_setting_is_a_statement_of_this_call(run, tangora_main):
    _, text = tangora_main("evaluate", run / "recipe.yaml", "--set", "base.trust_remote_code=true")
    assert "would load, got True" in text
    _, text = tangora_main("evaluate", run / "recipe.yaml", "--set", "seed=1")
    assert "runs code from the model's repository" in text


def test_in_python(run):
    for recipe in (load_recipe(run / "recipe.yaml"), Context.open(run).recipe):
        with pytest.raises(ModelError, match="repository"):
            tangora.load_base(recipe.base)
        assert "trust_remote_code: true" in recipe.to_yaml()  # what the file states is kept
    with pytest.raises(ModelError, match="would load, got True"):
        tangora.load_base(load_recipe(run / "recipe.yaml", trust_remote_code=True).base)
    with pytest.raises(ModelError, match="would load, got True"):
        tangora.analyze(run, only=["linearity"], trust_remote_code=True, progress=False)


@pytest.mark.parametrize("agreed", [True, False])
def test_workers_are_as_trusting_as_their_run(run, monkeypatch, agreed):
    given = []

    class Process:
        def __init__(self, target, args):
            given.append(args[:3])
            raise KeyboardInterrupt

    monkeypatch.setattr(processes.multiprocessing.get_context("spawn").__class__, "Process", Process)
    with pytest.raises(KeyboardInterrupt), processes._workers(Context.open(run, trust_remote_code=agreed), 1, 1):
        pass
    assert given == [(str(run), 1, agreed)]
