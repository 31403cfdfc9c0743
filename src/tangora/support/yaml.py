"""YAML as people write it: ``1e-4`` is a number (in YAML 1.1, and so to PyYAML, it is a text)."""

from __future__ import annotations

import re
from typing import Any

import yaml

__all__ = ["parse"]


class _Loader(yaml.SafeLoader):
    """The safe loader, with the floats of YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: it is not YAML.

    >>> parse("[1e-4, 5.e3, e4, 2e]")
    [0.0001, 5000.0, 'e4', '2e']
    """
    return yaml.load(text, Loader=_Loader)
