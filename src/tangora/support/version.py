"""The installed version of Tangora."""

from __future__ import annotations

from importlib import metadata

__all__ = ["package_version"]


def package_version() -> str:
    """Return the installed version of Tangora, or ``unknown``."""
    try:
        return metadata.version("tangora")
    except metadata.PackageNotFoundError:
        return "unknown"
