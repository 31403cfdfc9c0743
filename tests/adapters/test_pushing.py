"""Publishing onto a server that answers as the Hub does: what arrives, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hub_server import OWNER, READER, Hub, Repository, content_of, serving
from hub_worker import Worker
from tangora.adapters.adapter import Adapter, BaseInfo, Metadata
from tangora.updates.task_vector import LowRank

PUSH = """
import os, tangora
os.environ.pop("HF_TOKEN", None)
if token:
    os.environ["HF_TOKEN"] = token
pushed = tangora.push(folder, name, private=private == "yes", revision=revision or None, message=message or None)
result = [pushed.url, pushed.source, pushed.files, pushed.also_there]
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """All files go as they are: a large one needs xet or LFS, and `tests/cli/test_hub_commands.py` publishes by LFS."""
    with serving() as made:
        made.large = 10**9
        yield made


@pytest.fixture(scope="module")
def worker(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    made = Worker(hub.address, tmp_path_factory.mktemp("push") / "home")
    yield made
    made.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("adapter") / "one"
    update = LowRank(torch.ones(3, 1), torch.ones(1, 4))
    Adapter({"layer": update}, Metadata(task="colors", base=BaseInfo(model="org/base"))).save(place)
    return place


@pytest.fixture(autouse=True)
def _fresh(hub: Hub) -> None:
    hub.repositories.clear()
    hub.objects.clear()
    hub.ignored.clear()


def pushed(worker: Worker, folder: Path, name: str = "me/one", token: str = OWNER, **options: str) -> list[object]:
    """URL, source, files, and files that were there."""
    values = {"private": "", "revision": "", "message": "", **options}
    found = worker(PUSH, folder=str(folder), name=name, token=token, **values)
    assert isinstance(found, list), found
    return found


def refused(worker: Worker, folder: Path, name: str = "me/one", token: str = OWNER, **options: str) -> str:
    values = {"private": "", "revision": "", "message": "", **options}
    found = worker(PUSH, folder=str(folder), name=name, token=token, **values)
    assert isinstance(found, str), found
    return found


def test_what_arrives(hub: Hub, worker: Worker, folder: Path) -> None:
    url, source, files, also = pushed(worker, folder, private="yes")
    made = hub.repositories["me/one"]
    commit = made.refs["main"]
    assert (url, source, also) == (f"{hub.address}/me/one", f"me/one@{commit}", [])
    assert made.private
    expected = content_of(folder)
    there = {name: content for name, content in made.commits[commit].items() if name != ".gitattributes"}
    assert there.keys() == expected.keys() == set(files)
    assert there["README.md"] == expected["README.md"].replace(b"path/to/this/folder", b"me/one")
    assert all(there[name] == expected[name] for name in expected if name != "README.md")
    assert pushed(worker, folder)[1] == source  # nothing has changed: no commit
    loaded = "import os, tangora\nos.environ['HF_TOKEN'] = token\nresult = tangora.load(name).source"
    assert worker(loaded, name="me/one", token=OWNER) == source


def test_a_branch_and_files_that_are_there(hub: Hub, worker: Worker, folder: Path) -> None:
    hub.add("me/one", {"plot.png": b"p", "README.md": b"old"})
    main = hub.repositories["me/one"].refs["main"]
    url, source, _, also = pushed(worker, folder, revision="v2", message="hello")
    made = hub.repositories["me/one"]
    assert url == f"{hub.address}/me/one/tree/v2"
    assert source == f"me/one@{made.refs['v2']}"
    assert also == ["plot.png"]
    assert made.commits[made.refs["v2"]]["plot.png"] == b"p"  # nothing is deleted
    assert made.refs["main"] == main


def test_refused_by_what_is_there(hub: Hub, worker: Worker, folder: Path) -> None:
    hub.repositories["me/one"] = Repository()
    hub.repositories["me/one"].commit({"README.md": b""})
    text = refused(worker, folder, private="yes")
    assert text.startswith("OutputError: the repository exists and is public, got '--private' at me/one")
    hub.add("me/one", {"model.safetensors": b"m", "config.json": b"{}"})
    text = refused(worker, folder)
    assert text.startswith("OutputError: the repository holds another kind of model")
    assert "push deletes nothing" in text
    hub.add("me/one", {"heads/old.safetensors": b"h"})
    assert "heads of tasks that the folder does not have, and would keep them, got 'heads/old" in refused(
        worker, folder
    )
    hub.add("me/one", {"README.md": b""})
    hub.ignored.add("adapter_model.safetensors")
    text = refused(worker, folder)
    assert "a file did not arrive in the repository, got 'adapter_model.safetensors'" in text
    assert ".gitignore" in text


def test_refused_by_the_hub(hub: Hub, worker: Worker, folder: Path) -> None:
    for token, name in (("", "me/one"), (READER, "me/one"), (OWNER, "org/other"), ("hf_wrong", "me/one")):
        text = refused(worker, folder, name, token)
        assert text.startswith("OutputError: the Hub does not let this account, or this token, write there"), text
        assert "hf auth login" in text
    hub.status = 503
    try:
        assert refused(worker, folder).startswith("OutputError: the Hub refuses it (")
    finally:
        hub.status = None
    assert hub.repositories == {}
