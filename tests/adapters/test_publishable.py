"""What of a folder may be published, and what is refused before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tangora.adapters.adapter import Adapter, BaseInfo, Metadata
from tangora.adapters.publishable import publishable
from tangora.adapters.pushing import push
from tangora.errors import AdapterError, ArgumentError, FileError
from tangora.updates.task_vector import LowRank


def made(folder: Path, base: str | None = "org/base") -> Path:
    """A small adapter."""
    update = LowRank(torch.ones(3, 1), torch.ones(1, 2))
    Adapter({"layer": update}, Metadata(task="colors", base=BaseInfo(model=base))).save(folder)
    return folder


def read(content: Path | bytes) -> str:
    return (content.read_bytes() if isinstance(content, Path) else content).decode()


def test_an_adapter(tmp_path: Path) -> None:
    folder = made(tmp_path / "one")
    (folder / "notes.xlsx").write_text("private")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "optimizer.pt").write_bytes(b"p")
    found = publishable(folder, "me/one")
    assert sorted(found.files) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "tangora.json"]
    assert found.left_out == ["checkpoint-5/optimizer.pt", "notes.xlsx"]
    assert 'from_pretrained(base, "me/one")' in read(found.files["README.md"])
    assert "path/to/this/folder" not in read(found.files["README.md"])
    kept = {name: content for name, content in found.files.items() if name != "README.md"}
    assert kept == {name: folder / name for name in kept}  # as they are


def test_a_checkpoint(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "own"}')
    (tmp_path / "LICENSE").write_text("free")
    with pytest.raises(FileError, match=r"no model card in the folder, got 'README.md'"):
        publishable(tmp_path, "me/model")
    (tmp_path / "README.md").write_text("# A model, of https://example.org/a/b and either/or/both")
    found = publishable(tmp_path, "me/model")
    assert sorted(found.files) == ["LICENSE", "README.md", "config.json", "model.safetensors"]


def unfinished(folder: Path) -> None:
    (folder / ".one.tmp-abcd1234").mkdir()
    (folder / ".one.tmp-abcd1234" / "x").write_text("")


def incomplete(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def damaged(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"short")


def pickled(folder: Path) -> None:
    (folder / "training_args.bin").write_bytes(b"p")


def leading_out(folder: Path) -> None:
    (folder.parent / "secret.json").write_text("{}")
    (folder / "extra.json").symlink_to(folder.parent / "secret.json")


def path_in_card(folder: Path) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nTrained on /home/ada/mails/2024.csv.\n")


def windows_path_in_card(folder: Path) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nTrained on C:\\Users\\ada\\mails.\n")


def path_in_record(folder: Path) -> None:
    (folder / "training.json").write_text(json.dumps({"rows": [{"file": "/srv/rows/a.csv"}]}))


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (damaged, r"adapter_model\.safetensors"),
        (empty, "no checkpoint here"),
        (incomplete, "a file that the folder's record lists is missing, got 'adapter_config.json'"),
        (leading_out, "a link that leads out of the folder"),
        (path_in_card, "a path of this machine would be published, got '/home/ada/mails/2024.csv"),
        (path_in_record, r"published, got '/srv/rows/a\.csv' at .*training\.json"),
        (pickled, r"a pickle, which can run code, is not published, got 'training_args\.bin'"),
        (unfinished, r"the folder is not finished, got '\.one\.tmp-abcd1234'"),
        (windows_path_in_card, r"a path of this machine would be published, got 'C:"),
    ],
)
def test_refused(tmp_path: Path, spoil: Callable[[Path], None], expected: str) -> None:
    folder = made(tmp_path / "one")
    spoil(folder)
    with pytest.raises(FileError, match=expected) as caught:
        publishable(folder, "me/one")
    assert caught.value.fix


def test_a_base_that_is_a_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models/base").mkdir(parents=True)
    for index, base in enumerate(["models/base", str(tmp_path / "models/base"), "../base"]):
        folder = made(tmp_path / f"adapter{index}", base)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(FileError, match=r"a path of this machine would be published.*--base org/name"):
            publishable(folder, "me/one")
        found = publishable(folder, "me/one", "org/base")
        assert json.loads(read(found.files["tangora.json"]))["base"]["model"] == "org/base"
        card = read(found.files["README.md"])
        assert card.startswith("---\nbase_model: org/base\n")
        assert base not in card.replace("org/base", "")
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_arguments(tmp_path: Path) -> None:
    folder = made(tmp_path / "one")
    for name in ("me", "me/one/sub", "me/one@v1", "/me/one", "me/a--b"):
        with pytest.raises(ArgumentError, match="no name of a repository on the Hub"):
            push(folder, name)
    with pytest.raises(ArgumentError, match="no name of a repository on the Hub"):
        push(folder, "me/one", revision="a b")
    with pytest.raises(ArgumentError, match=r"no name on the Hub, got 'base' at push\.base"):
        push(folder, "me/one", base="base")
    with pytest.raises(FileError, match="no such folder"):
        push(tmp_path / "nowhere", "me/one")
    both = made(tmp_path / "both")
    save_file({"w": torch.ones(2)}, both / "model.safetensors")
    with pytest.raises((FileError, AdapterError), match="an adapter and a whole model in one folder"):
        push(both, "me/one")
