"""Which Tangora this is."""

from __future__ import annotations

from importlib import metadata

__all__ = ["package_version"]


def package_version() -> str:
    """The installed version of Tangora."""
    try:
        return metadata.version("tangora")
    except metadata.PackageNotFoundError:
        return "unknown"
