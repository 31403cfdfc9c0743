"""A page for each fusion method and each router, from the registry and the docstring."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pages import results
from pages.prose import Docstring, cell, marked, reference_link, table
from tangora.methods import Method, methods
from tangora.routing.contract import choose_of
from tangora.support.seams import ROUTERS

__all__ = ["method_page", "pages"]

_SEES = {
    "element": "Every entry is computed from the same entry of the updates, so any part of a tensor at a time.",
    "tensor": "One site at a time: a whole tensor of every adapter is in memory.",
    "model": "All sites of all adapters at once, as one vector for each.",
}


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the text of every page."""
    known = methods()
    for name, method in known.items():
        yield f"methods/{name}.md", _with_links(method_page(method), name, set(known))
    for name in ROUTERS.own:
        yield f"methods/{name}.md", _router_page(name, ROUTERS.get(name))


def method_page(method: Method) -> str:
    """Return the page of a fusion method, with links to no other."""
    text = Docstring.of(method.function)
    advice = next((p for p in text.paragraphs if p.startswith("Choose it ")), "")
    equation, *rest = [p for p in text.paragraphs if p != advice] or [""]
    parts = [
        f"# {method.name}\n",
        marked(text.summary),
        marked(equation),
        f"![What {method.name} makes of two updates](pictures/{method.name}.png)",
        "*Two updates of 24 × 24 entries: a spot of the first alone, one of the second alone, one that both share "
        "(right) and one in which they are opposed (below), with noise. Third: their sum with the method's default "
        f"weight. Fourth: what `{method.name}` returns with its defaults.*",
        _advice(advice.removeprefix("Choose it ")),
        f"**Source.** {reference_link(method.reference)}",
        "## Use\n",
        _use(method),
        *_parameters(method, text),
        "## Cost and promises\n",
        "".join(f"- {line}\n" for line in _promises(method)),
        results.section(method.name),
        *(["## Details\n", *map(marked, rest)] if rest else []),
        *_raises(text),
        f"## Example\n\n```pycon\n{text.example}\n```" if text.example else "",
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _advice(text: str) -> str:
    shown = marked(text)
    return f"**When to choose it.** {shown[:1].upper()}{shown[1:]}" if text else ""


def _use(method: Method) -> str:
    settings = "".join(f" --set {name}={value!r}" for name, value in method.parameters.items())
    keywords = "".join(f", {name}={value!r}" for name, value in method.parameters.items())
    given = f", parameters: {{{', '.join(f'{k}: {v!r}' for k, v in method.parameters.items())}}}"
    statistics = " --statistics a.safetensors --statistics b.safetensors" if method.statistics else ""
    files = ', statistics=["a.safetensors", "b.safetensors"]' if method.statistics else ""
    entry = f"{{method: {method.name}{given if method.parameters else ''}}}"
    return (
        f"```console\n$ tangora fuse a b --method {method.name}{settings}{statistics} --out fused\n```\n\n"
        f'```python\nfused = tangora.fuse(["a", "b"], "{method.name}", '
        f"weights={method.default_weight:g}{keywords}{files})\n```\n\n"
        f"In a recipe:\n\n```yaml\nfusion: {{methods: [{entry}]}}\n```"
    )


def _parameters(method: Method, text: Docstring) -> list[str]:
    described = text.sections.get("Args", {})
    rows = [("`weights`", f"`{method.default_weight:g}`", "λ, one number for all or one for each adapter")]
    rows += [
        (f"`{name}`", f"`{default!r}`", cell(marked(described.get(name, ""))))
        for name, default in method.parameters.items()
    ]
    return ["## Parameters\n", table(("parameter", "default", "meaning"), rows)]


def _promises(method: Method) -> Iterator[str]:
    sees = _SEES[method.granularity]
    if method.linear:
        sees = (
            "Linear: low-rank updates are summed as factors, no dense matrix is formed, and a search can use gradients."
        )
    elif method.by_rows:
        sees = "Linear in every row: low-rank updates stay low-rank, and no dense matrix is formed."
    elif method.rotates_outputs:
        sees = "Sees the whole tensor, of low-rank updates in a basis of their outputs: the result is low-rank, too."
    elif method.cutoff:
        sees += f" With the cutoffs of `{method.cutoff}` found beforehand, full checkpoints are fused in blocks."
    yield sees
    if method.homogeneous:
        yield "Homogeneous in λ: a grid over λ costs one fusion."
    if method.random:
        yield "Random, and reproducible by `seed`: the draws do not depend on order or blocks."
    if method.statistics:
        kind = method.statistics
        yield f"Needs statistics of every expert's data (`{kind}`): [collect them](../design/statistics.md)."
    if method.tasks:
        yield f"Fuses exactly {method.tasks} adapters."
    if not method.exact:
        yield "Decomposes matrices, so results agree up to rounding and not bit by bit."


def _raises(text: Docstring) -> list[str]:
    found = text.sections.get("Raises", {})
    lines = "".join(f"- `{name}`: {marked(why)}\n" for name, why in found.items())
    return [f"## Errors\n\n{lines}"] if found else []


def _router_page(name: str, router: Any) -> str:
    text = Docstring.of(router)
    advice = choose_of(router)
    rest = [p for p in text.paragraphs if not p.startswith("Choose it ")]
    rows = [
        (f"`{key}`", f"`{field.default}`", cell(marked(field.description or "")))
        for key, field in router.settings.model_fields.items()
        if key != "name"
    ]
    needs = "" if router.needs == "nothing" else " --data a=a.csv --data b=b.csv --base BASE"
    parts = [
        f"# {name}\n",
        "A router: the experts stay apart, and inputs choose among them. " + marked(text.summary),
        *map(marked, rest),
        _advice(f"{advice}." if advice else ""),
        f"**Source.** {reference_link(router.reference)}",
        f"## Use\n\n```console\n$ tangora fuse a b --method {name}{needs} --out routed\n```",
        "More: [Fuse, route or train jointly](../fuse-route-or-train.md).",
        "## Settings\n\n" + table(("setting", "default", "meaning"), rows) if rows else "",
        f"## Example\n\n```pycon\n{text.example}\n```" if text.example else "",
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _with_links(text: str, name: str, known: set[str]) -> str:
    """Link the other methods that the prose names, outside of blocks of code."""
    blocks = re.split(r"(```.*?```)", text, flags=re.DOTALL)
    for place, block in enumerate(blocks):
        if not block.startswith("```"):
            found = re.compile(r"(?<!\[)`([a-z_]+)`")
            blocks[place] = found.sub(lambda m: f"[{m[0]}]({m[1]}.md)" if m[1] in known - {name} else m[0], block)
    return "".join(blocks)
