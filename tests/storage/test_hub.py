"""Folders by their names on the Hub, from a server that answers as the Hub does, in a process as a user's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_server import OWNER, READER, Hub, serving
from hub_worker import Worker

LOCATED = """
from pathlib import Path
from tangora.storage.hub import located
place = located(name, purpose)
files = sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()) if place.is_dir() else []
result = [str(place), files]
"""
WEIGHTS = b"w" * 4000
ADAPTER = {
    ".gitattributes": b"",
    "README.md": b"# card",
    "adapter_config.json": b'{"peft_type": "LORA"}',
    "adapter_model.bin": b"p" * 5000,
    "adapter_model.safetensors": WEIGHTS,
    "checkpoint-5/adapter_config.json": b"{}",
    "checkpoint-5/adapter_model.safetensors": b"5" * 2000,
    "checkpoint-5/optimizer.pt": b"o" * 2000,
    "heads/a.json": b"{}",
    "heads/a.safetensors": b"h" * 2000,
    "heads/a.pt": b"p",
    "odd[1]*.json": b"{}",
    "optimizer.pt": b"p" * 2000,
    "tangora.json": b"{}",
    "tokenizer.json": b"{}",
    "trainer_state.json": b"{}",
    "training_args.bin": b"p",
}
INDEX = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
CHECKPOINT = {
    "1_Pooling/config.json": b"{}",
    "LICENSE": b"free",
    "README.md": b"# card",
    "config.json": b"{}",
    "flax_model.msgpack": b"f" * 2000,
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS + b"2",
    "model-00003-of-00003.safetensors": b"of another index",
    "model.safetensors.index.json": INDEX,
    "modeling_own.py": b"",
    "onnx/model.onnx": b"x" * 2000,
    "original/consolidated.00.pth": b"p",
    "pytorch_model.bin": b"p" * 5000,
    "vocab.txt": b"a",
}
WRITTEN = """
from huggingface_hub import HfApi
from tangora.storage.hub_errors import upload_errors
from tangora.support.hub import HubReference
with upload_errors(HubReference(name)):
    HfApi().create_repo(name)
"""
NEEDED = {
    *("README.md", "adapter_config.json", "adapter_model.safetensors", "heads/a.json", "heads/a.safetensors"),
    *("odd[1]*.json", "tangora.json", "tokenizer.json"),
}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A Hub with an adapter that has a second version and subfolders, checkpoints, and what is refused."""
    with serving() as made:
        made.add("org/adapter", ADAPTER)
        made.repositories["org/adapter"].refs["v1"] = made.repositories["org/adapter"].refs["main"]
        made.repositories["org/adapter"].commit({"adapter_config.json": b'{"second": 2}'})
        made.add("org/base", CHECKPOINT)
        single = {"config.json": b"{}", "model.safetensors": WEIGHTS, "model.safetensors.index.json": INDEX}
        made.add("org/single", single)
        named = {**single, "config.json": b'{"transformers_weights": "own.safetensors"}', "own.safetensors": b"own"}
        made.add("org/named", named)
        made.add(
            "org/escape", {**CHECKPOINT, "model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'}
        )
        made.add("org/both", {**single, **ADAPTER})
        made.add("org/pickle", {k: v for k, v in ADAPTER.items() if k != "adapter_model.safetensors"})
        made.add("org/pickled", {"config.json": b"{}", "pytorch_model.bin": b"p"})
        made.add("org/shelf", {"a/adapter_model.safetensors": b"a", "b/adapter_model.safetensors": b"b"})
        made.add("org/style", {"style.safetensors": WEIGHTS, "sample.png": b"p" * 2000, "README.md": b""})
        made.add("org/styles", {"one.safetensors": WEIGHTS, "two.safetensors": WEIGHTS})
        made.add("org/text", {"README.md": b"nothing"})
        made.add("org/gated", ADAPTER, gated=True)
        made.add("org/private", ADAPTER, private=True)
        yield made


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub") / "home"


@pytest.fixture(scope="module")
def worker(hub: Hub, home: Path) -> Iterator[Worker]:
    made = Worker(hub.address, home)
    yield made
    made.close()


@pytest.fixture(scope="module")
def offline(hub: Hub, home: Path) -> Iterator[Worker]:
    made = Worker(hub.address, home, HF_HUB_OFFLINE="1")
    yield made
    made.close()


def located(worker: Worker, name: str, purpose: str = "any", cwd: Path | None = None) -> tuple[str, set[str]]:
    """The place of a folder, and the files in it."""
    place, files = worker(LOCATED, name=name, purpose=purpose, cwd=cwd)
    return place, set(files)


def refused(worker: Worker, name: str, purpose: str = "any") -> str:
    """The error."""
    text = worker(LOCATED, name=name, purpose=purpose)
    assert isinstance(text, str), text
    return text


def test_an_adapter_is_fetched_without_pickles_and_subfolders(hub: Hub, worker: Worker) -> None:
    hub.asked.clear()
    commit = hub.repositories["org/adapter"].refs["main"]
    place, files = located(worker, "org/adapter", "adapter")
    assert files == NEEDED
    assert place.endswith(f"models--org--adapter/snapshots/{commit}")
    assert (Path(place) / "adapter_config.json").read_bytes() == b'{"second": 2}'
    assert (Path(place) / "adapter_model.safetensors").read_bytes() == WEIGHTS
    got = [path for method, path in hub.asked if method == "GET"]
    assert not [path for path in got if path.endswith((".bin", ".pt"))]
    large = [path for path in got if path.startswith("/lfs/")]
    assert len(large) == 2  # the weights, and the head
    hub.asked.clear()
    assert located(worker, "org/adapter", "adapter") == (place, files)
    assert not [
        path for method, path in hub.asked if method == "GET" and not path.startswith("/api/")
    ]  # is in the cache


def test_a_subfolder_and_revisions(hub: Hub, worker: Worker) -> None:
    first = hub.repositories["org/adapter"].refs["v1"]
    place, files = located(worker, "org/adapter/checkpoint-5@v1")
    assert place.endswith(f"{first}/checkpoint-5")
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    place, _ = located(worker, f"org/adapter@{first}")
    assert (Path(place) / "adapter_config.json").read_bytes() == ADAPTER["adapter_config.json"]
    hub.asked.clear()
    assert located(worker, f"org/adapter@{first}")[0] == place
    assert hub.asked == []  # a commit never changes


def test_a_checkpoint_is_fetched_with_the_shards_of_its_index(hub: Hub, worker: Worker) -> None:
    _, files = located(worker, "org/base", "checkpoint")
    without = {"flax_model.msgpack", "onnx/model.onnx", "original/consolidated.00.pth", "pytorch_model.bin"}
    assert files == CHECKPOINT.keys() - without - {"model-00003-of-00003.safetensors"}
    assert located(worker, "org/single")[1] == {"config.json", "model.safetensors", "model.safetensors.index.json"}
    assert "own.safetensors" in located(worker, "org/named")[1]
    assert "model.safetensors" not in located(worker, "org/named")[1]


def test_a_single_file_of_another_format(worker: Worker) -> None:
    place, files = located(worker, "org/style", "adapter")
    assert place.endswith("/style.safetensors")
    assert files == set()
    assert Path(place).read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("name", "purpose", "expected"),
    [
        ("org/adapter", "checkpoint", "ArgumentError: an adapter where a full checkpoint is needed at org/adapter"),
        (
            "org/adapter/nowhere",
            "any",
            "FileError: .*no such folder, got 'nowhere' .*Give one of: checkpoint-5, heads",
        ),
        ("org/adapter@v9", "any", "FileError: the repository has no such revision, got 'v9' at org/adapter@v9"),
        ("org/base", "adapter", "AdapterError: a full checkpoint where an adapter is needed"),
        ("org/both", "any", "FileError: an adapter and a whole model in one folder"),
        ("org/escape", "any", "FileError: a file of weights is not in the repository, got '../x.safetensors'"),
        ("org/gated", "any", r"FileError: the repository is gated.*Ask for access at http.*org/gated, and log in"),
        ("org/nowhere", "any", "FileError: no such folder here, and no such repository on the Hub, or a private one"),
        ("org/pickle", "any", "FileError: the weights are a pickle.*not fetched, got 'adapter_model.bin'"),
        ("org/pickled", "any", "FileError: the weights are a pickle.*not fetched, got 'pytorch_model.bin'"),
        ("org/private", "any", r"FileError: no such folder here.*if the repository is private, log in with hf auth"),
        ("org/shelf", "any", "FileError: .*in folders inside, got 'a, b' .*give one of them, such as org/shelf/a"),
        ("org/styles", "any", "FileError: several files of weights, .*got 'one.safetensors, two.safetensors'"),
        ("org/text", "any", "FileError: no adapter or checkpoint in safetensors there, got 'README.md'"),
    ],
)
def test_refused(hub: Hub, worker: Worker, name: str, purpose: str, expected: str) -> None:
    hub.asked.clear()
    text = refused(worker, name, purpose)
    assert re.match(expected, text, re.IGNORECASE), text
    assert not [path for _, path in hub.asked if path.startswith("/lfs/")]  # before anything large is fetched


def test_tokens(worker: Worker) -> None:
    with_token = "import os\nos.environ['HF_TOKEN'] = token"
    try:
        worker(with_token, token=READER)
        assert refused(worker, "org/gated").startswith("FileError: the repository is gated")
        assert located(worker, "org/private")[1] == NEEDED  # the server of large files gets no token
        worker(with_token, token=OWNER)
        assert located(worker, "org/gated")[1] == NEEDED
        worker(with_token, token="hf_wrong")
        assert refused(worker, "org/adapter").startswith("FileError: the Hub refuses the token, got 401")
    finally:
        worker("import os\ndel os.environ['HF_TOKEN']")


def test_a_path_that_exists_wins(hub: Hub, worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "org" / "adapter").mkdir(parents=True)
    hub.asked.clear()
    assert located(worker, "org/adapter", cwd=tmp_path)[0] == "org/adapter"
    assert located(worker, "org/missing", cwd=tmp_path)[0] == "org/missing"
    assert located(worker, "./org/missing")[0] == "org/missing"
    assert hub.asked == []


def test_offline(hub: Hub, worker: Worker, offline: Worker) -> None:
    located(worker, "org/adapter")
    hub.asked.clear()
    assert located(offline, "org/adapter") == located(worker, "org/adapter")
    text = refused(offline, "org/unknown")
    assert "no such folder here, and no complete copy in the Hub's cache, and HF_HUB_OFFLINE forbids" in text
    assert "Check the path; if it names a repository of the Hub, unset HF_HUB_OFFLINE; or run the same command" in text
    expected = "OutputError: HF_HUB_OFFLINE forbids to ask the Hub at org/unknown. Unset it to push"
    assert offline(WRITTEN, name="org/unknown") == expected


def test_an_incomplete_copy_is_no_copy(hub: Hub, worker: Worker, offline: Worker, home: Path) -> None:
    """What another program has fetched in part, or what has been removed, is not taken for the whole."""
    hub.add("org/partial", ADAPTER)
    worker("from huggingface_hub import hf_hub_download as get\nget(name, 'adapter_config.json')", name="org/partial")
    worker(
        "from huggingface_hub import hf_hub_download as get\nget(name, 'adapter_model.safetensors')", name="org/partial"
    )
    assert "no complete copy" in refused(offline, "org/partial")  # peft alone does not fetch tangora.json and heads
    place, files = located(worker, "org/partial")
    assert located(offline, "org/partial") == (place, files)
    os.remove(Path(place) / "heads" / "a.safetensors")
    assert "no complete copy" in refused(offline, "org/partial")


def test_the_network_is_down(worker: Worker, hub: Hub, home: Path, tmp_path: Path) -> None:
    place, _ = located(worker, "org/adapter")
    hub.status = 503
    try:
        assert located(worker, "org/adapter")[0] == place  # the copy in the cache
        assert "the Hub fails to answer, got 503 at org/unknown" in refused(worker, "org/unknown")
    finally:
        hub.status = None
    away = Worker("http://127.0.0.1:9", home)
    try:
        assert located(away, "org/adapter")[0] == place
        text = refused(away, "org/unknown")
        assert "no such folder here, and the Hub cannot be reached" in text
        assert (
            "at org/unknown, http://127.0.0.1:9. Check the path; if it names a repository of the Hub, check the network"
            in text
        )
        assert away(WRITTEN, name="org/unknown").startswith("OutputError: the Hub cannot be reached (")
    finally:
        away.close()


def test_a_cache_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    blocked = Worker(hub.address, tmp_path / "home")
    try:
        text = refused(blocked, "org/adapter")
    finally:
        blocked.close()
    assert "the Hub's cache cannot be written" in text
    assert "set HF_HOME to another folder" in text
