"""The pages of the tutorials: executed notebooks as Markdown, and what each takes."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["ORDER", "page", "pages", "pictures"]

FOLDER = Path(__file__).parents[2] / "tutorials"
ORDER = (
    "three-adapters",
    "from-csv",
    "adding-up",
    "forget",
    "small-memory",
    "fuse-route-train",
    "write-a-method",
    "cluster",
)
_INDEX = """# Tutorials

Executed notebooks: what a page shows was printed and drawn by the cells above it. They need no network and no GPU,
and make their models and data themselves. A notebook writes into the folder where it runs, so start it in an
empty one:

```console
$ pip install 'tangora[all]' jupyter
$ jupyter lab three-adapters.ipynb
```

| tutorial | | processor seconds |
|---|---|---:|
{rows}

Times are those of the outputs shown, by `make tutorials`: of processors, for all processes of a notebook together
({measured}). Where nothing else runs, you wait about as long. The machine that made these had other work.
"""


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the text of the index, and of a page for each notebook."""
    listed = {name: _read(name) for name in ORDER if (FOLDER / f"{name}.ipynb").is_file()}
    yield "tutorials/index.md", _index(listed)
    for name, notebook in listed.items():
        yield f"tutorials/{name}.md", page(name, notebook)


def pictures() -> Iterator[tuple[str, bytes]]:
    """Yield the path and the content of every picture that a page shows."""
    for name in ORDER:
        if (FOLDER / f"{name}.ipynb").is_file():
            for number, picture in enumerate(_pictures(_read(name)), 1):
                yield f"tutorials/{name}-{number}.png", base64.b64decode(picture)


def page(name: str, notebook: dict[str, Any]) -> str:
    """Return a notebook as Markdown: after the title, links to the notebook and to its source."""
    parts: list[str] = []
    number = 0
    for cell in notebook["cells"]:
        text = _text(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else _code(text))
        for output in cell.get("outputs", ()):
            number += "image/png" in output.get("data", {})
            parts.append(_output(output, f"{name}-{number}.png"))
    title, _, rest = parts[0].partition("\n")
    seconds = notebook["metadata"]["tangora"]["processor_seconds"]
    links = f"[Download the notebook]({name}.ipynb){{ download }} · [as a script]({name}.py){{ download }}"
    note = f'<p class="tutorial-links" markdown="span">{links} · {seconds:.0f} seconds of a processor</p>'
    return "\n\n".join([title, note, rest.strip(), *parts[1:]]).rstrip() + "\n"


def _index(listed: dict[str, dict[str, Any]]) -> str:
    rows, measured = [], set()
    for name, notebook in listed.items():
        title, line = _text(notebook["cells"][0]["source"]).split("\n\n")[:2]
        took = notebook["metadata"]["tangora"]
        cells = (f"[{title.removeprefix('# ')}]({name}.md)", " ".join(line.split()), f"{took['processor_seconds']:.0f}")
        rows.append(f"| {' | '.join(cells)} |")
        measured.add(f"{took['cores']} cores, {took['threads']} for torch")
    return _INDEX.format(rows="\n".join(rows), measured="; ".join(sorted(measured)))


def _code(text: str) -> str:
    lines = text.splitlines()
    if all(line.startswith("!") for line in lines):
        return _fenced("\n".join(f"$ {line[1:]}" for line in lines), "console")
    return _fenced(text, "python")


def _output(output: dict[str, Any], picture: str) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![What the cell draws]({picture})"
    if "text/html" in data:
        table = re.sub(r"\n\s*\n", "\n", _text(data["text/html"]).strip())
        return f'<div class="tutorial-output">\n{table}\n</div>'
    text = _text(output.get("text") or data.get("text/plain", ""))
    return _fenced(text.strip("\n"), "{ .text .tutorial-output }")


def _fenced(text: str, language: str) -> str:
    mark = "~~~" if "```" in text else "```"
    return f"{mark}{language}\n{text}\n{mark}"


def _pictures(notebook: dict[str, Any]) -> Iterator[str]:
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                yield _text(output["data"]["image/png"])


def _read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)
