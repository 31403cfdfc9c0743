"""One tiny base and one adapter of each kind, for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from servable import KINDS, adapter_of, base_of


@pytest.fixture(scope="session")
def bases(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {kind: base_of(kind, root / kind) for kind in KINDS}


@pytest.fixture(scope="session")
def adapters(bases, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {kind: adapter_of(kind, bases[kind], root / kind) for kind in KINDS}
