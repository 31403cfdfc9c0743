"""Render a page from its template, with inline styles and scripts and a policy that allows no other sources."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import metadata, resources
from typing import Any

from tangora.report.palette import COLORS
from tangora.support.extras import require

__all__ = ["render"]


def render(template: str, *, styles: Sequence[str], scripts: Sequence[str], **values: Any) -> str:
    """Return a self-contained HTML page; styles and scripts are names of files beside this one."""
    require("report", purpose="a page")
    from jinja2 import Environment, FunctionLoader, StrictUndefined  # deferred: an extra
    from markupsafe import Markup  # deferred: an extra

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_resource),
    )
    script = "".join(_resource(name) for name in scripts)
    return environment.get_template(template).render(
        css=Markup("".join(_resource(name) for name in styles)),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        colors=COLORS,
        version=metadata.version("tangora"),
        **values,
    )


def _resource(name: str) -> str:
    return (resources.files("tangora.report") / name).read_text(encoding="utf-8")
