"""What a string names on the Hub, and what is never looked up there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tangora.support.hub import HubReference, hub_name_of, hub_reference, shown_source, source_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Qwen/Qwen3-0.6B", HubReference("Qwen/Qwen3-0.6B")),
        ("org/name/sub/deeper", HubReference("org/name", "sub/deeper")),
        ("org/name/sub@refs/pr/1", HubReference("org/name", "sub", "refs/pr/1")),
        ("org/name@feature/x", HubReference("org/name", "", "feature/x")),
        (f"org/name@{COMMIT}", HubReference("org/name", "", COMMIT)),
    ],
)
def test_names(text: str, expected: HubReference) -> None:
    found = hub_reference(text)
    assert found == expected
    assert str(found) == text
    assert found.is_commit == (COMMIT in text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-org/name",
        "../org/name",
        "./org/name",
        "/org/name",
        "C:/org/name",
        "https://huggingface.co/org/name",
        "org",
        "org/",
        "org/../name",
        "org/a--b",
        "org/a..b",
        "org/name.git",
        "org/name/",
        "org/name/../..",
        "org/name/style.safetensors",
        "org/name@",
        "org/name@a b",
        "org/name@a..b",
        "org/name@a@b",
        "org\\name",
        "org\0/name",
        "~/org/name",
        "ü/name",
    ],
)
def test_never_looked_up(text: str) -> None:
    assert hub_reference(text) is None


def test_what_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_reference("runs/adapter") is not None
    (tmp_path / "runs").mkdir()  # then a missing folder in it is a slip of the pen
    assert hub_reference("runs/adapter") is None
    (tmp_path / "org").write_text("")
    assert hub_reference("org/name@v1") is None
    (tmp_path / "gone").symlink_to("nowhere")
    assert hub_reference("gone/adapter") is None
    assert hub_reference(Path("other/adapter")) is None
    assert hub_name_of("runs/adapter") == HubReference("runs/adapter")  # whatever is here


def test_where_a_path_is_from() -> None:
    place = Path(f"/cache/models--org--chat/snapshots/{COMMIT}")
    assert source_of(place) == f"org/chat@{COMMIT}"
    assert source_of(place / "sub") == f"org/chat/sub@{COMMIT}"
    assert source_of("runs/adapter") is None
    assert shown_source(place / "sub") == f"org/chat/sub@{COMMIT[:12]}"
    assert shown_source(Path("runs/adapter")) == "runs/adapter"
    assert hub_name_of(source_of(place / "sub") or "") == HubReference("org/chat", "sub", COMMIT)  # usable as it is
