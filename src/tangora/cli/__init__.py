"""The command line: arguments, terminal, exit codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tangora.cli.commands import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the program, and exit; see `tangora.cli.commands.main`."""
    from tangora.cli.commands import main as run  # deferred: bars in notebooks come from this package without typer

    run()


def __getattr__(name: str) -> Any:
    if name == "app":
        from tangora.cli.commands import app  # deferred: as above

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
