"""The model card beside an adapter: where it comes from, how it was made, how it scored, how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tangora.support.markdown import as_code, as_table, as_text
from tangora.support.seams import FAMILIES, SPACES
from tangora.support.yaml import dump

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.adapters.metadata import FusedInfo, Metadata

__all__ = ["render"]

_BUILTIN = "from tangora.config.recipe import BaseConfig\nfrom tangora.tasks import load_base\n"
_LOAD = 'model = PeftModel.from_pretrained(base, "path/to/this/folder")\n'
_LOAD_FULL = 'tangora.load("path/to/this/folder").apply_(base)  # in place\n'
_LINEARIZED = {
    "none": "no",
    "module": "each adapted layer at its start (L-LoRA)",
    "model": "the whole network at the adapter's start (tangent)",
}
_TANGENT = (
    " What is loaded so is the ordinary, non-linear network with these weights. The adapter was made for the network's "
    'expansion at its start, and scored with it: `tangora.load_model("path/to/this/folder")` is that.'
)
_SELECTED = {
    "validation": "coefficients chosen on validation data",
    "oracle": "**† oracle: coefficients chosen on the very split that is scored; an upper bound, not a result**",
    "given": "coefficients given beforehand",
}


def render(adapter: Adapter) -> str:
    """The text of ``README.md``: YAML front matter that the Hub reads, then Markdown.

    No licence is named: it depends on those of the base model and of the data.

    >>> from tangora.adapters.adapter import Adapter, BaseInfo, Metadata
    >>> card = render(Adapter({}, Metadata(task="sst2", base=BaseInfo(model="google/flan-t5-base"))))
    >>> card.splitlines()[1]
    'base_model: google/flan-t5-base'
    """
    about = adapter.metadata
    sections = [_front_matter(about), _title(about), _fused(about.fused) if about.fused else _trained(adapter)]
    sections += [_scores(about.scores), _verified(about.verified), _loading(adapter), _provenance(adapter)]
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def _front_matter(about: Metadata) -> str:
    front: dict[str, Any] = {}
    if about.base.model and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", about.base.model):  # a Hub id: the Hub links it
        front["base_model"] = about.base.model
        front["base_model_relation"] = "adapter" if about.of_kind.in_peft else "finetune"
    if about.of_kind.in_peft:
        front["library_name"] = "peft"
    front["tags"] = [
        "tangora",
        *(["lora"] if about.of_kind.has_factors else []),
        *(["model-merging"] if about.fused else []),
    ]
    return "---\n" + dump(front) + "---"


def _title(about: Metadata) -> str:
    if about.fused:
        tasks = [p.task or p.name for p in about.fused.parents]
        title = f"{len(tasks)} tasks in one: {', '.join(tasks)}"
    else:
        title = about.task or "An adapter"
    base = f" of {as_code(about.base.model)}" if about.base.model else ""
    revision = f", revision {as_code(about.base.revision)}" if about.base.revision else ""
    made = "fused" if about.fused else "made"
    return f"# {as_text(title)}\n\n{about.of_kind.title}{base}{revision}, {made} with Tangora {about.tangora}."


def _fused(fused: FusedInfo) -> str:
    rows = [("method", as_code(fused.method)), ("space", _space(fused.space))]
    rows += [(name, as_code(json.dumps(value))) for name, value in fused.parameters.items()]
    if fused.rank is not None:
        rows.append(("rank", str(fused.rank)))
    error = fused.truncation_error
    rows.append(
        ("truncation error", "none: exact" if not error else f"{error:.3g} (relative, Frobenius, over all sites)")
    )
    if fused.selection:
        rows.append(("coefficients", ", ".join(f"{k} {as_text(str(v))}" for k, v in fused.selection.items())))
    for known in fused.statistics or ():
        said = f"{known['kind']}, {known['rows']} {known['split']} rows, {known['fingerprint'][:16]}"
        rows.append((f"statistics of {as_text(str(known['task']))}", as_text(said)))
    if fused.heads:
        told = {"keep": "one per task, in `heads/`", "fuse": "fused by name: their mean, by weight"}
        rows.append(("what was saved whole", told[fused.heads]))
    per_site = isinstance(fused.weights, dict)
    parents = []
    for index, parent in enumerate(fused.parents):
        weight = "per site" if isinstance(fused.weights, dict) else f"{fused.weights[index]:g}"
        parents.append(
            (
                as_text(parent.name),
                as_text(parent.task or "–"),
                weight,
                as_code(parent.fingerprint[:16]),
            )
        )
    note = "\n\nThe weight of every site is in `tangora.json`." if per_site else ""
    table = as_table(("parent", "task", "weight", "fingerprint"), parents)
    return f"## How it was fused\n\n{as_table(('', ''), rows)}\n\n{table}{note}"


def _trained(adapter: Adapter) -> str:
    about, recipe = adapter.metadata, adapter.metadata.recipe or {}
    training, lora = recipe.get("training") or {}, recipe.get("lora") or {}
    rows = [("mode", about.mode), ("task", about.task)]
    if about.distilled is not None:
        told = about.distilled
        prints = [told.teacher] if isinstance(told.teacher, str) else list(told.teacher.values())
        whose = f"the tangent adapter{'s' * (len(prints) > 1)} {', '.join(print_[:16] for print_ in prints)}"
        of_whom = f"{whose}, on {told.rows} unlabelled {told.split} rows"
        rows.append(("follows the features of", f"{of_whom} of {', '.join(told.tasks)}"))
    if about.of_kind.has_factors:
        linearized = _LINEARIZED[about.linearize]
        rows += [("linearized", linearized), ("rank", lora.get("r")), ("alpha", lora.get("alpha"))]
        rows.append(("target modules", lora.get("target_modules")))
    rows += [(_LABELS[key], training.get(key)) for key in _LABELS] + [("seed", about.seed)]
    if about.initial is not None:
        start = f"{about.initial.a_init} A₀, seed {about.initial.seed}"
        rows.append(("initial values φ₀", start + _fingerprint(about.initial.fingerprint)))
    known = [(label, as_text(_plain(value))) for label, value in rows if value is not None]
    return f"## How it was trained\n\n{as_table(('', ''), known)}" if known else ""


_LABELS = {"learning_rate": "learning rate", "steps": "steps", "batch_size": "batch size", "schedule": "schedule"}


def _scores(scores: Mapping[str, Any] | None) -> str:
    if not scores or not isinstance(scores.get("tasks"), Mapping) or not scores["tasks"]:
        return ""
    selection = str(scores.get("selection") or "")
    mark = " †" if selection == "oracle" else ""
    words = [
        f"On the {as_text(str(scores.get('split', 'unknown')))} split",
        _SELECTED.get(selection, as_text(selection)),
    ]
    rows = [(as_text(str(task)), f"{float(score):.4f}{mark}") for task, score in scores["tasks"].items()]
    return f"## Scores\n\n{'; '.join(w for w in words if w)}.\n\n{as_table(('task', 'score'), rows)}"


def _verified(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    against = {"parents": "the sum of its parents in float64", "result": "the fused update in float64"}
    rows = [
        (f"the files, read by stock peft, against {against.get(str(found.get('reference')), 'the update')}", "error")
    ]
    again = f"the method evaluated again in float64, at {found.get('again')} of the sites, against the files"
    rows += [(again, "again_error")]
    rows += [("the parents' own files, read by stock peft", "identity"), ("factors written otherwise", "gauge")]
    told = [(text, f"{float(found[key]):.1e}") for text, key in rows if isinstance(found.get(key), float)]
    probed = found.get("probed")
    note = f" {probed} of the sites are large, and were compared on 16 random vectors." if probed else ""
    table = as_table(("compared", "largest relative difference of a site"), told)
    return f"## Verified\n\nWhen it was written, over {found.get('sites')} sites.{note}\n\n{table}"


def _loading(adapter: Adapter) -> str:
    base = adapter.metadata.base
    if adapter.metadata.of_kind.in_peft:
        words, head, tail = "Stock peft loads it.", "from peft import PeftModel\n", _LOAD
    else:
        words, head, tail = "Tangora adds the differences to the base model's weights.", "import tangora\n", _LOAD_FULL
    if adapter.metadata.expanded:
        words += _TANGENT
    if (base.model or "").startswith("builtin:"):
        imports, made = _BUILTIN, f"load_base(BaseConfig(family={base.family!r}, model={base.model!r})).backbone"
    else:
        family = FAMILIES.get(base.family) if base.family is not None and base.family in FAMILIES else None
        loader = family.auto_class(base.model or "") if family is not None else "AutoModel"
        revision = f", revision={json.dumps(base.revision)}" if base.revision else ""
        imports = f"from transformers import {loader}\n"
        made = f"{loader}.from_pretrained({json.dumps(base.model or 'the/base-model')}{revision})"
    own = [task for task in adapter.heads if task in adapter.records]
    if own:
        words += " The trained head of every task is in `heads/`, beside a JSON file that describes how it answers."
    for task in [task for task in adapter.heads if task not in own][:1]:
        imports += "from safetensors.torch import load_file\n"
        path = json.dumps(f"path/to/this/folder/heads/{task}.safetensors")
        made += f"\nbase.load_state_dict(load_file({path}), strict=False)"
        words += " The base takes the head of one task first."
    code = f"{head}{imports}\nbase = {made}\n{tail}"
    return f"## How to load it\n\n{words}\n\n```python\n{code}```"


def _provenance(adapter: Adapter) -> str:
    rows = [("adapter", as_code(adapter.fingerprint))]
    if adapter.metadata.base.fingerprint:
        rows.append(("base weights", as_code(adapter.metadata.base.fingerprint)))
    return f"## Fingerprints\n\n{as_table(('', 'sha-256'), rows)}\n\nAll of this, for machines: `tangora.json`."


def _space(space: str) -> str:
    # A card is also written where the package that brought the space is not installed.
    summary = f" ({as_text(SPACES.get(space).summary)})" if space in SPACES else ""
    return as_code(space) + summary


def _fingerprint(value: str | None) -> str:
    return f", fingerprint {value[:16]}" if value else ""


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
