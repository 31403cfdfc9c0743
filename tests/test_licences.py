"""What `pip install tangora` brings has permissive licences, by the metadata of what is installed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PERMISSIVE = {
    *("0BSD", "Apache", "Apache-2.0", "Apache 2.0", "Apache-2.0 WITH LLVM-exception", "Apache Software License"),
    *("Apache 2.0 License", "BSD", "BSD License", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python"),
    *("ISC", "ISC License (ISCL)", "MIT", "MIT License", "PSF-2.0", "Python Software Foundation License", "Unlicense"),
    *("Zlib", "zlib-acknowledgement", "HPND", "MIT-CMU"),
}
# Only changes of their own files have to be published: tqdm comes with transformers, certifi with its client of HTTP.
ACCEPTED = {"tqdm": "MPL-2.0", "certifi": "MPL-2.0"}
NVIDIA = re.compile(r"nvidia-.*|cuda-.*")  # CUDA's own runtime, which torch's wheels bring on some machines


def parts(expression: str) -> Iterator[list[str]]:
    """The alternatives of every part of an SPDX expression, in which AND binds all of them."""
    for part in re.split(r"\s+AND\s+", expression.replace("(", "").replace(")", "")):
        yield [choice.strip() for choice in re.split(r"\s+OR\s+", part)]


def stated(about: Mapping[str, str], classifiers: list[str]) -> Iterator[list[str]]:
    """What a distribution states: an expression; else classifiers; else the free text, if it is short."""
    if about.get("License-Expression"):
        yield from parts(about["License-Expression"])
    elif licences := [line.split(" :: ")[-1] for line in classifiers if line.startswith("License :: ")]:
        yield from ([licence] for licence in licences)
    else:
        yield from parts((about.get("License") or "").strip().splitlines()[0] if about.get("License") else "")


def refused(name: str, about: Mapping[str, str], classifiers: list[str]) -> list[str]:
    """The parts of a distribution's licence that are not permissive."""
    allowed = PERMISSIVE | {ACCEPTED.get(name, "MIT")}
    return [" OR ".join(choices) for choices in stated(about, classifiers) if not allowed & set(choices)]


def brought(package: str) -> dict[str, metadata.Distribution]:
    """The installed distributions that a package requires without extras, and theirs, and so on."""
    found: dict[str, metadata.Distribution] = {}
    waiting, seen = [(package, "")], set()
    while waiting:
        name, extra = waiting.pop()
        for requirement in map(Requirement, metadata.distribution(name).requires or []):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            required = canonicalize_name(requirement.name)
            found[required] = metadata.distribution(required)
            more = {(required, wanted) for wanted in ("", *requirement.extras)} - seen
            seen |= more
            waiting += sorted(more)
    return found


def test_the_default_installation_is_permissive():
    found = brought("tangora")
    assert {"torch", "peft", "safetensors", "tokenizers", "sympy"} <= found.keys(), "what is required by others too"
    wrong = {}
    for name, distribution in found.items():
        about = distribution.metadata
        if not NVIDIA.fullmatch(name):
            one = {key: about[key] for key in ("License-Expression", "License") if about[key]}
            if odd := refused(name, one, about.get_all("Classifier") or []):
                wrong[name] = odd
    assert wrong == {}
    assert not {"directsearch", "nevergrad"} & found.keys()


@pytest.mark.parametrize(
    ("about", "classifiers"),
    [
        ({"License-Expression": "GPL-3.0-or-later"}, []),
        ({"License-Expression": "MIT AND LGPL-2.1-only"}, []),
        ({"License": "GPLv3+"}, []),
        ({"License": "AGPL"}, ["License :: OSI Approved :: GNU Affero General Public License v3"]),
        ({"License": "MIT"}, ["License :: OSI Approved :: MIT License", "License :: OSI Approved :: GNU GPL"]),
        ({"License-Expression": "MPL-2.0"}, []),
        ({}, []),
    ],
)
def test_a_licence_that_is_not_permissive_is_found(about, classifiers):
    assert refused("some", about, classifiers)


def test_a_choice_of_licences_is_one():
    assert refused("some", {"License-Expression": "Apache-2.0 OR GPL-2.0-only"}, []) == []
    assert refused("tqdm", {"License": "MPL-2.0 AND MIT"}, []) == []
