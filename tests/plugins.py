"""Packages of examples/plugins, installed from their own pyproject.toml into a folder, and used from there."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tangora.support.registry import Registry

EXAMPLES = Path(__file__).parents[1] / "examples" / "plugins"


def install(folder: Path, *names: str) -> Path:
    """Install plug-ins by name, without a network, and return the folder that Python must look into."""
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    places = [str(EXAMPLES / name) for name in names]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", str(folder), *places], check=True)
    return folder


@contextlib.contextmanager
def installed(folder: Path, *registries: Registry) -> Iterator[None]:
    """Look into the folder for packages and their entry points, for the length of the block."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    for registry in registries:
        registry.__dict__.pop("_entries", None)
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for registry in registries:
            for name in registry.__dict__.pop("_entries", {}):
                registry.unregister(name)
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
                del sys.modules[name]
