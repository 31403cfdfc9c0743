"""The section of a model card on how the network of an adapter is loaded: by peft, or by its mode."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tangora.adapters.model_classes import labels_of, model_class, vocabulary_of
from tangora.adapters.usage import BASE, FOLDER, returns_features
from tangora.support.seams import FAMILIES

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["loading"]

_LOAD = f'model = PeftModel.from_pretrained(base, "{FOLDER}")\n'
_LOAD_FULL = f'tangora.load("{FOLDER}").apply_(base)  # in place\n'
_HEADS = " The trained head of each task is in `heads/`; the code above builds one in."


def loading(adapter: Adapter) -> str:
    """Return the section on the network: what the adapter's mode makes of the base."""
    if adapter.metadata.expanded:
        return _by_mode(adapter, "This is the expansion of the base, which returns what the base returns.")
    if adapter.metadata.of_kind.adds_modules:
        return _by_mode(adapter, "Tangora adds the modules to the base, which returns what it did.")
    if adapter.metadata.of_kind.in_peft:
        text, head, tail = "Stock peft loads it.", "from peft import PeftModel\n", _LOAD
    else:
        text, head, tail = "Tangora adds the differences to the base model's weights.", "import tangora\n", _LOAD_FULL
    imports, made = _made(adapter)
    own = [task for task in adapter.heads if task in adapter.records]
    if own or any(returns_features(record) for record in adapter.records.values()):
        text += f" This is the network alone: it returns features, not answers.{_HEADS if own else ''}"
    for task in [task for task in adapter.heads if task not in own][:1]:
        imports += "from safetensors.torch import load_file\n"
        path = json.dumps(f"{FOLDER}/heads/{task}.safetensors")
        made += f"\nbase.load_state_dict(load_file({path}), strict=False)"
        text += " First, load the head of one task into the base."
    code = f"{head}{imports.removeprefix(head)}\nbase = {made}\n{tail}"
    return f"## How to load the network\n\n{text}\n\n```python\n{code}```"


def _by_mode(adapter: Adapter, text: str) -> str:
    """Return the section on a network that only the adapter's mode makes."""
    base = "" if adapter.metadata.base.model else f", base={json.dumps(BASE)}"
    code = f'import tangora\n\nmodel = tangora.load_model("{FOLDER}"{base})\n'
    if adapter.metadata.expanded and any(returns_features(record) for record in adapter.records.values()):
        text += " What follows, such as pooling and a head, is expanded too if it is given to `model.then`."
    return f"## How to load the network\n\n{text}\n\n```python\n{code}```"


def _made(adapter: Adapter) -> tuple[str, str]:
    """Return the code that imports what loads the base, and the expression that loads it."""
    base = adapter.metadata.base
    towers = getattr(FAMILIES.get(base.family), "towers", ()) if base.family and base.family in FAMILIES else ()
    if towers or (base.model or "").startswith("builtin:"):  # no class of transformers loads it
        settings = next((dict(record.base) for record in adapter.records.values()), {})
        named = {"family": base.family, "revision": base.revision, **{key: settings.get(key) for key in towers}}
        keys = "".join(f", {key}={json.dumps(value)}" for key, value in named.items() if value is not None)
        return "import tangora\n", f"tangora.load_base({json.dumps(base.model or BASE)}{keys}).backbone"
    imports, made = _base_code(adapter)
    if (rows := vocabulary_of({name: value.shape for name, value in adapter.whole.items()})) is not None:
        made += f"\nbase.resize_token_embeddings({rows})"
    return imports, made


def _base_code(adapter: Adapter) -> tuple[str, str]:
    """Return the code that imports the class of the base, and the expression that loads it."""
    base = adapter.metadata.base
    arguments = json.dumps(base.model or "the/base-model")
    arguments += f", revision={json.dumps(base.revision)}" if base.revision else ""
    if base.family is not None and base.family in FAMILIES:
        loader = FAMILIES.get(base.family).auto_class(base.model or "")
        return f"from transformers import {loader}\n", f"{loader}.from_pretrained({arguments})"
    named = model_class(adapter.config)
    if named is None:  # only the base's configuration names its class
        loader = f"getattr(transformers, AutoConfig.from_pretrained({arguments}).architectures[0])"
        return "import transformers\nfrom transformers import AutoConfig\n", f"{loader}.from_pretrained({arguments})"
    saved = [adapter.whole, *(head for task, head in adapter.heads.items() if task not in adapter.records)]
    labels = next((n for named in saved if (n := labels_of({k: v.shape for k, v in named.items()}))), None)
    arguments += f", num_labels={labels}" if labels is not None else ""
    return f"from transformers import {named}\n", f"{named}.from_pretrained({arguments})"
