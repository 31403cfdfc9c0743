"""Show text of files to a terminal: characters that it would obey are spelled out, and the length is bounded."""

from __future__ import annotations

__all__ = ["LONGEST", "printable"]

LONGEST = 4000
"""The longest text that is shown, in characters; a path has at most 4096 bytes."""

# Control characters, and marks that reorder the text around them.
_MARKS = (0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF)
_SPELLED = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {c: f"\\u{c:04x}" for c in _MARKS}
_LINES = {code: text for code, text in _SPELLED.items() if code not in (9, 10)}


def printable(text: str, *, lines: bool = False, most: int = LONGEST) -> str:
    r"""Return a text without effect on a terminal.

    Args:
        text: of a file, or of a user.
        lines: keep line feeds and tabs.
        most: the number of characters; of a longer text, beginning and end are shown.

    >>> print(printable("a\x1b[2Jb\nc"), printable("x" * 50, most=20))
    a\x1b[2Jb\x0ac xxxxxxxxxx … 30 more … xxxxxxxxxx
    """
    if len(text) > most:
        half = most // 2
        text = f"{text[:half]} … {len(text) - 2 * half} more … {text[-half:]}"
    return text.translate(_LINES if lines else _SPELLED)
