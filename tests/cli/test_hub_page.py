"""The blocks of docs/hub.md run, in order, against a server that answers as the Hub does."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import pytest
from typer.testing import CliRunner

from hub_server import OWNER, Hub, serving
from hub_worker import Worker
from tangora.cli import app
from tangora.cli.commands import LISTED, command
from tangora.cli.options import FromHub
from tangora.errors import FileError

PAGE = (Path(__file__).parents[2] / "docs" / "hub.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(console|python)\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def hub(workshop: Path) -> Iterator[Hub]:
    with serving() as made:
        for name in ("one", "two"):
            made.add(f"org/{name}", workshop / "adapters" / name)
        made.repositories["org/two"].refs["v1"] = made.repositories["org/two"].refs["main"]
        made.add("org/encoder", workshop / "encoder")
        yield made


@pytest.fixture(scope="module")
def worker(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    made = Worker(hub.address, tmp_path_factory.mktemp("hub") / "home", HF_HUB_DISABLE_XET="1", HF_TOKEN=OWNER)
    yield made
    made.close()


def test_the_page_runs(hub: Hub, worker: Worker, tmp_path: Path) -> None:
    printed, collect = [], "\nresult = [str(value) for value in (fused.metadata.fused.parents[0].source,)]"
    for language, code in BLOCKS:
        if language == "python":
            result = worker(code + (collect if "fused =" in code else "\nresult = [pushed.url]"), cwd=tmp_path)
            assert isinstance(result, list), result
            printed += result
            continue
        for line in code.splitlines():
            program, *arguments = shlex.split(line.removeprefix("$ "))
            assert program == "tangora"
            status, out, err = worker.command(*arguments, cwd=tmp_path)
            assert status in (0, None), (line, err)
            printed.append(out)
    assert [language for language, _ in BLOCKS] == ["console", "python", "console", "python"]
    commit = hub.repositories["org/one"].refs["main"]
    assert printed[4] == f"org/one@{commit}"
    assert printed[6] == f"{hub.address}/me/fused"
    assert hub.repositories["me/fused"].private
    assert (tmp_path / "merged" / "config.json").is_file()


def test_the_commands_that_take_names_are_those_that_the_page_lists() -> None:
    names = [name for panel in LISTED.values() for name in panel]
    marked = {name for name in names if any(isinstance(mark, FromHub) for mark in marks(name))}
    listed = PAGE.partition("These take names: ")[2].partition(", with `--base`")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == marked | {"inspect", "tune"}  # these look names up by themselves


def marks(name: str) -> list[object]:
    """What the options of a command are annotated with."""
    options = get_type_hints(command(name).work)["options"]
    hints = get_type_hints(options, include_extras=True).values()
    return [mark for hint in hints for mark in getattr(hint, "__metadata__", ())]


@pytest.mark.parametrize("name", ["analyze", "explore", "job", "jobs", "report"])
def test_a_run_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    more = ["a-key"] if name == "job" else []
    error = CliRunner().invoke(app, [name, "org/my-run@v1", *more]).exception
    assert isinstance(error, FileError)
    assert "hf download org/my-run --revision v1 --local-dir my-run" in str(error)
    assert not list(tmp_path.iterdir())
