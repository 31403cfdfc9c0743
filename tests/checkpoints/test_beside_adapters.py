"""Tokenizers beside adapters: taken over by a fused adapter if all have the same, listed if not."""

from __future__ import annotations

import json
import sys

import pytest

import toys
from tangora.adapters.adapter import load
from tangora.checkpoints.beside_adapters import beside_adapters
from tangora.cli import commands
from tangora.errors import FileError

FILES = {
    "tokenizer.json": {"model": {"vocab": {"a": 0, "b": 1}}},
    "tokenizer_config.json": {"chat_template": "{{ messages }}", "transformers_version": "5.0"},
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
}


def parents(root, *changes):
    """Folders of adapters, each with the files of a tokenizer and changes of it; None takes a file away."""
    folders = []
    for number, change in enumerate(({}, *changes)):
        toys.lora(number + 1).save(folder := root / f"a{number}")
        for name, content in {**FILES, **change}.items():
            if content is not None:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
        folders.append(folder)
    return folders


@pytest.fixture
def fuse(tmp_path, monkeypatch, capsys):
    """Fuse folders of adapters on the command line -> the output, and what was printed."""

    def call(*folders, options=()):
        out = tmp_path / "fused"
        line = ["tangora", "fuse", *map(str, folders), "--no-verify", "--out", str(out), *options]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as stop:
            commands.main()
        captured = capsys.readouterr()
        assert not stop.value.code, captured.err
        return out, captured.out

    return call


def test_one_tokenizer_of_all_is_taken_over(tmp_path, fuse):
    older = {**FILES["tokenizer_config.json"], "transformers_version": "4.0"}
    folders = parents(tmp_path, {"tokenizer_config.json": older})
    out, text = fuse(*folders)
    for name in FILES:
        assert (out / name).read_bytes() == (folders[0] / name).read_bytes()
    assert "the tokenizer is the one that all adapters have" in text
    assert set(FILES) <= set(json.loads((out / "tangora.json").read_text())["files"])
    load(out)
    fuse(*folders, options=["--overwrite"])  # it counts as Tangora's own output


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokenizer.json": {"model": {"vocab": {"a": 1, "b": 0}}}}, "tokenizer.json"),
        ({"chat_template.jinja": "{{ other }}"}, "chat_template.jinja"),
        ({"additional_chat_templates/tools.jinja": None}, "additional_chat_templates/tools.jinja"),
        ({"vocab.txt": "a"}, "vocab.txt"),
    ],
)
def test_what_differs_is_left_out_and_listed(tmp_path, fuse, change, named):
    out, text = fuse(*parents(tmp_path, change))
    assert not [path.name for path in out.rglob("*") if path.relative_to(out).as_posix() in {*FILES, "vocab.txt"}]
    line = " ".join(text.split())
    assert f"left out, since not all adapters have the same {named}:" in line
    assert all(name in line for name in FILES)


def test_adapters_without_a_tokenizer_say_nothing(tmp_path):
    folders = parents(tmp_path, dict.fromkeys(FILES))
    toys.lora(3).save(tmp_path / "plain")
    assert beside_adapters([tmp_path / "plain", folders[1]]) == ({}, [])


def test_a_link_out_of_an_adapter(tmp_path):
    folders = parents(tmp_path, {})
    (tmp_path / "secret").write_text("x")
    for folder in folders:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(FileError, match="leads out"):
        beside_adapters(folders)
