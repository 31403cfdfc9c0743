"""The help, its examples, and what the shell completes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib import resources
from unittest.mock import patch

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from tangora.cli import app
from tangora.cli.commands import LISTED, command

PROGRAM = get_command(app)
NAMES = sorted(PROGRAM.commands)


def help_of(*arguments, width=80):
    with patch("typer.rich_utils.MAX_WIDTH", width):  # read from the environment when it was imported
        done = CliRunner().invoke(app, [*arguments], env={"COLUMNS": str(width)})
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_short_help_an_example_and_the_common_options(name):
    text = help_of(name, "-h")
    assert text == help_of(name, "--help")
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    for option in ("--json", "--quiet", "-q", "--verbose", "-v", "-h"):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", text), option
    assert f"Example  tangora {name}" in text


@pytest.mark.parametrize("name", ["", *NAMES])
def test_help_is_whole_at_60_columns(name):
    text = help_of(*[name] * bool(name), "-h", width=60)
    assert all(len(line) <= 60 for line in text.splitlines())
    assert "…" not in text
    assert "<bool>" not in text


@pytest.mark.parametrize("name", NAMES)
def test_every_group_of_options_has_an_example_which_is_a_command(name):
    built = command(name).built()
    groups = {getattr(one, "rich_help_panel", None) for one in built.params if not one.hidden} - {None}
    lines = [command(name).example, f"{command(name).example} --json", *command(name).examples.values()]
    assert groups == {"Output", *command(name).examples}
    for line in lines:
        program, first, *arguments = shlex.split(line)
        assert (program, first) == ("tangora", name)
        assert command(name).built().make_context(name, arguments).params
    for group, line in command(name).examples.items():
        options = [one for one in built.params if getattr(one, "rich_help_panel", None) == group]
        assert any(option in shlex.split(line) for one in options for option in (*one.opts, *one.secondary_opts))
        assert group in help_of(name, "-h").split("Example  ")[1]


def test_the_list_says_of_each_command_what_its_own_help_says_first():
    summaries = {name: summary for panel in LISTED.values() for name, summary in panel.items()}
    assert summaries == {name: command(name).help[0] for name in summaries}


def test_help_imports_no_command_and_a_command_no_other():
    run = "import sys; sys.argv = ['tangora', {}]; from tangora.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    ask = (
        "print('loaded', *[name for name in sys.modules if name.startswith('tangora.') or name in ('ruamel', 'email')])"
    )
    loaded = []
    for arguments in ("'-h'", "'job', '-h'"):
        done = subprocess.run([sys.executable, "-c", run.format(arguments) + ask], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        loaded.append(set(done.stdout.splitlines()[-1].split()[1:]))
    program = {*("command", "commands", "completion", "exits", "options", "output", "terminal")}
    assert loaded[0] == {
        "tangora.cli",
        "tangora.errors",
        "tangora.progress",
        "tangora.support",
        "tangora.support.printable",
        *(f"tangora.cli.{name}" for name in program),
    }
    assert {name for name in loaded[1] - loaded[0] if name.startswith("tangora")} == {"tangora.cli.job"}


def test_the_options_of_full_are_hidden_and_work():
    text = help_of("fuse", "-h")
    assert "--full" not in text
    assert "--shard-size" not in text
    assert "--shard-size" in help_of("merge", "-h")


def test_commands_are_listed_in_groups():
    text = help_of("-h")
    positions = [text.index(panel) for panel in ("Fuse and merge", "Recipes", "Look into a run", "Look up")]
    assert positions == sorted(positions)
    assert all(f" {name} " in text for name in PROGRAM.commands)


def bundled_recipe(name):
    return (resources.files("tangora") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def completed(shell, *words):
    """What the program offers a shell for the last word."""
    line = shlex.join(["tangora", *words])
    line = line.removesuffix("''")
    environment = {"_TANGORA_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line}
    environment |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words)), "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    code = "import sys; sys.argv = ['tangora']; from tangora.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_methods_are_completed(shell):
    text = completed(shell, "fuse", "--method", "ti")
    assert "ties_per_tensor" in text
    assert "average" not in text


def test_names_are_completed():
    assert completed("bash", "run", "quick").split() == ["quickstart"]
    assert {"fuse", "finetune"} <= set(completed("bash", "f").split())
    assert completed("bash", "finetune", "quickstart", "--mode", "l").split() == ["lora", "l-lora"]
    assert completed("bash", "finetune", "quickstart", "--task", "d").split() == ["digits"]
    assert completed("bash", "finetune", "nothing", "--task", "d").split() == []
    assert completed("bash", "evaluate", "quickstart", "--split", "v").split() == ["validation"]
    assert completed("bash", "plugins", "met").split() == ["methods", "metrics"]
    assert completed("bash", "statistics", "--kind", "").split() == ["gram", "fisher"]
    assert completed("bash", "fuse", "--space", "d").split() == ["delta"]


def test_settings_of_a_polish_are_completed():
    assert completed("bash", "polish", "--set", "lear").split() == ["learning_rate="]


def test_executors_are_completed():
    assert completed("bash", "run", "quickstart", "--executor", "").split() == ["processes", "ray", "serial"]


def test_modes_of_a_run_are_completed(tmp_path, monkeypatch):
    from tangora.cli import completion

    (tmp_path / "run").mkdir()
    raw = bundled_recipe("quickstart").replace("  l-lora: #", "  mine: #")
    (tmp_path / "run" / "recipe.yaml").write_text(raw)
    monkeypatch.setenv("COMP_WORDS", f"tangora explore {tmp_path / 'run'} --mode ")
    assert completion.modes("") == ["lora", "mine"]
    assert completion.mode_lists("lora,m") == ["lora,mine"]
    assert completion.analyses("signs,a") == ["signs,angles"]
    monkeypatch.setenv("COMP_WORDS", "tangora explore nothing --mode ")
    assert "l-lora" in completion.modes("")


def test_options_that_name_something_are_completed():
    named = {"method", "space", "heads", "mode", "modes", "executor", "split", "task", "kinds", "only", "settings"}
    for name in NAMES:
        for parameter in command(name).built().params:
            if parameter.name in named:
                assert parameter._custom_shell_complete is not None, (name, parameter.name)


def test_the_analyses_are_those_that_there_are():
    from tangora.cli import completion
    from tangora.runs.stages.analysis_plan import KINDS

    assert completion.ANALYSES == KINDS


def test_every_method_is_completed():
    from tangora.cli import completion
    from tangora.methods import methods
    from tangora.support.seams import ROUTERS

    assert completion.methods("") == sorted(methods())
    assert completion.fusions("") == sorted([*methods(), *ROUTERS])


def test_values_of_keys_are_completed():
    from tangora.cli import completion

    assert completion.settings("fusion.methods.0.method=tie") == [
        f"fusion.methods.0.method={name}" for name in ("ties", "ties_per_tensor", "ties_sum")
    ]
    assert completion.settings("tasks.0.metric=acc") == ["tasks.0.metric=accuracy"]
    assert completion.settings("seed") == []
    assert completion.settings("seed=") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_printed(shell):
    code = "import sys; sys.argv = ['tangora']; from tangora.cli import main; main()"
    environment = {**os.environ, "_TANGORA_COMPLETE": f"source_{shell}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"complete_{shell}" in done.stdout


def test_completing_imports_nothing_heavy():
    code = """
import os, sys
os.environ |= {"_TANGORA_COMPLETE": "complete_bash", "COMP_WORDS": "tangora fuse --method ti", "COMP_CWORD": "3"}
sys.argv = ["tangora"]
from tangora.cli import main
try: main()
except SystemExit: pass
assert not {"torch", "transformers", "peft", "numpy"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
