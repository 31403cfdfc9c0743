"""A routed adapter given to commands that cannot use it: refused with a way out, and nothing is written."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

import tangora
from routing.experts import of_tiny
from tangora.cli import app
from tangora.errors import ModelError
from tangora.modular.network import NAME
from tangora.testing._tiny import tiny_base


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Folders of a base, two experts, and a routed adapter of them."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "base").mkdir()
    tiny_base(folder / "base")
    for adapter, name in zip(of_tiny(1, 2), "ab", strict=True):
        adapter.save(folder / name)
    tangora.route([folder / "a", folder / "b"], "smile", top_k=1).save(folder / "routed")
    return folder


SERVERS = [(f"export ROUTED --to {to} --base BASE --out OUT", "a routed adapter") for to in ("gguf", "peft", "vllm")]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        *SERVERS,
        ("explore ROUTED", "not a run"),
        ("extract BASE ROUTED --rank 2 --out OUT", "this is one already"),
        ("extract ROUTED BASE --rank 2 --out OUT", "this is one already"),
        ("fuse ROUTED A --base BASE --rank 2 --out OUT", "Give the adapters that it was made of"),
        ("fuse ROUTED A --method smile --out OUT", "Give the adapters that it was made of"),
        ("fuse ROUTED A --out OUT", "Give the adapters that it was made of"),
        ("merge BASE ROUTED --out OUT", "is an adapter"),
        ("merge ROUTED --base BASE --out OUT", "Give the adapters that it was made of"),
        ("merge ROUTED A --base BASE --weights 0.5 --out OUT", "Give the adapters that it was made of"),
    ],
)
def test_it_is_refused_and_nothing_is_written(home, command, said):
    places = {"ROUTED": "routed", "BASE": "base", "OUT": "out", "A": "a"}
    words = [str(home / places[word]) if word in places else word for word in command.split()]
    before = sorted(home.rglob("*"))
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, tangora.TangoraError), (done.output, done.exception)
    assert said in str(done.exception)
    assert sorted(home.rglob("*")) == before


def test_another_base_of_the_same_shape_is_refused_and_left_as_it_was(home):
    other = tiny_base().backbone
    with torch.no_grad():
        other.embeddings.word_embeddings.weight.add_(0.5)
    with pytest.raises(ModelError, match="the adapter was made for tiny of weights"):
        tangora.load_model(home / "routed", other)
    assert not hasattr(other, NAME)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in other.modules())
    tangora.load_model(home / "routed", other, same_base=True)
    assert hasattr(other, NAME)
