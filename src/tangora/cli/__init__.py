"""The command line: arguments, terminal, exit codes."""

from tangora.cli.commands import app, main

__all__ = ["app", "main"]
