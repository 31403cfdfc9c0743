"""Names that tell folders apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangora.support.names import hub_name, names_of, numbered

PATHS = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join), min_size=1, max_size=5)


@given(PATHS)
def test_names_differ_and_are_ends_of_their_paths(paths):
    names = names_of([f"/{path}" for path in paths])
    assert len(set(names)) == len(paths)
    for name, path in zip(names, paths, strict=True):
        if paths.count(path) == 1:
            assert f"/{path}".endswith(f"/{name}")
            shorter = name.partition("/")[2]  # one part less would not do
            assert not shorter or sum(f"/{other}".endswith(f"/{shorter}") for other in paths) > 1


CACHE = "/home/me/hub/models--org--{}/snapshots/{}"


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ([CACHE.format("chat", "0123")], ["chat"]),
        (
            [CACHE.format("chat", "0123") + "/checkpoint-500", "/run/checkpoint-500"],
            ["chat/checkpoint-500", "run/checkpoint-500"],
        ),
        ([CACHE.format("chat", "0123"), CACHE.format("chat", "4567")], ["0123", "4567"]),
        (["/a/run", "/a/run/"], ["run", "run (2)"]),
        (["/run", "/a/run"], ["run", "a/run"]),
    ],
)
def test_names(paths, names):
    assert names_of(paths) == names


def test_the_hubs_name_of_a_folder():
    assert hub_name(CACHE.format("chat", "0123")) == "org/chat"
    assert hub_name("/data/snapshots/0123") is None
    assert hub_name("org/chat") is None
    assert hub_name("models--gpt2/snapshots/0123") == "gpt2"


@given(st.lists(st.sampled_from(["a", "a (2)", "b"]), max_size=6))
def test_repetitions_are_numbered(names):
    assert len(set(numbered(names))) == len(names)
    if len(set(names)) == len(names):
        assert numbered(names) == names
