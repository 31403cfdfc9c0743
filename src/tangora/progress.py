"""How long work reports itself: a quiet listener that the command line replaces by bars."""

from __future__ import annotations

__all__ = ["Progress"]


class Progress:
    """Receives what a run is doing; this one ignores it.

    A stage begins with a label and a total of steps, advances, and ends. Stages do not nest.
    """

    def begin(self, label: str, total: int) -> None:
        """A stage of ``total`` steps starts."""

    def advance(self, steps: int = 1, detail: str = "") -> None:
        """``steps`` more are done; ``detail`` says what is being worked on."""

    def update(self, done: int, detail: str = "") -> None:
        """``done`` steps are done in all, also those of an earlier sitting."""

    def end(self) -> None:
        """The stage is over."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""
