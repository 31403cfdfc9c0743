"""The reference of recipes: every key with its type, default and meaning; and the JSON Schema for editors."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from pages.prose import marked
from tangora.config.json_schema import recipe_schema
from tangora.config.reference import Key, recipe_keys

__all__ = ["page", "schema"]

_INTRO = """\
# Recipe

Every key of a recipe, in its order. `[]` stands for every item of a list, `NAME` for a name of your own. A key has to
be given if it says *required*. The same in the terminal: `tangora recipe keys`, or
`tangora recipe keys tasks --family causal-lm`; how to write one: [Recipes](../recipes.md).

An editor completes and checks recipes by the [JSON Schema](recipe.schema.json), with a first line such as

```yaml
# yaml-language-server: $schema=recipe.schema.json
```

`tangora recipe schema > recipe.schema.json` writes it with the members of your plug-ins.
"""


def page() -> tuple[str, str]:
    """Return the path and the text of the page."""
    sections: dict[str, list[Key]] = {}
    for key in recipe_keys():
        sections.setdefault(re.split(r"[.\[]", key.path)[0], []).append(key)
    parts, alone = [_INTRO], [name for name, keys in sections.items() if len(keys) == 1]
    parts += ["## The run", *(_entry(sections.pop(name)[0]) for name in alone)]
    for name, keys in sections.items():
        parts += [f"## {name}", *map(_entry, keys)]
    return "reference/recipe.md", "\n\n".join(part.strip("\n") for part in parts) + "\n"


def schema() -> tuple[str, str]:
    """Return the path and the text of the JSON Schema."""
    return "reference/recipe.schema.json", json.dumps(recipe_schema(), indent=1) + "\n"


def _entry(key: Key) -> str:
    facts = [f"<span class=key-type>{_text(key.type)}</span>"]
    if key.required:
        facts.append("**required**")
    elif key.default is not None:
        facts.append(f"default `{key.default}`" if key.default else 'default `""`')
    if key.of:
        facts.append(f"{key.of} {_names(key.names)}")
    return f"`{key.path}`\n\n:   {' · '.join(facts)}<br>{marked(key.description)}"


def _text(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "&#124;").replace("*", r"\*")


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
