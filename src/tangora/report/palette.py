"""The colours of figures and pages, by role."""

from __future__ import annotations

__all__ = ["COLORS"]

COLORS: dict[str, tuple[str, str]] = {
    "bg": ("#ffffff", "#14171c"),
    "fg": ("#1b1e23", "#e8eaed"),
    "muted": ("#565c66", "#a9b0bb"),
    "grid": ("#dde1e6", "#30353d"),
    "s0": ("#0072b2", "#56b4e9"),
    "s1": ("#d55e00", "#f5a524"),
    "s2": ("#00805d", "#2fc79b"),
    "s3": ("#a6457f", "#e39ac6"),
    "s4": ("#7a6a00", "#e6dc4c"),
    "s5": ("#53565a", "#c3c7cc"),
}
"""Role -> (light, dark). Series colours are Okabe and Ito's, darkened or lightened to a contrast of 3:1."""
