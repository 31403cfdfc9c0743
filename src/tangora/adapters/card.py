"""Render an adapter's model card: its provenance, how it was made, its scores, how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tangora.adapters.model_classes import labels_of, model_class, vocabulary_of
from tangora.support.markdown import as_code, as_table, as_text
from tangora.support.seams import FAMILIES, SPACES
from tangora.support.shown import decimal
from tangora.support.yaml import dump

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.adapters.metadata import FusedInfo, Metadata, PolishedInfo

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
    " This loads the ordinary, non-linear network with these weights. The adapter was trained and scored in the "
    'network\'s expansion at its start: load that with `tangora.load_model("path/to/this/folder")`.'
)
_SELECTED = {
    "validation": "coefficients chosen on validation data",
    "oracle": "**† oracle: coefficients chosen on the very split that is scored; an upper bound, not a result**",
    "given": "coefficients fixed in advance",
}


def render(adapter: Adapter) -> str:
    """Return the text of ``README.md``: YAML front matter for the Hub, then Markdown.

    It names no licence: that depends on the licences of the base model and of the data.

    >>> from tangora.adapters.adapter import Adapter, BaseInfo, Metadata
    >>> card = render(Adapter({}, Metadata(task="sst2", base=BaseInfo(model="google/flan-t5-base"))))
    >>> card.splitlines()[1]
    'base_model: google/flan-t5-base'
    """
    metadata = adapter.metadata
    made = _fused(metadata.fused) if metadata.fused else _trained(adapter)
    sections = [_front_matter(metadata), _title(metadata), made, _polished(metadata.polished)]
    sections += [_scores(metadata.scores), _verified(metadata.verified), _loading(adapter), _provenance(adapter)]
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def _front_matter(metadata: Metadata) -> str:
    front: dict[str, Any] = {}
    model, kind = metadata.base.model, metadata.of_kind
    if model and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model):  # a Hub id: the Hub links it
        front["base_model"] = model
        front["base_model_relation"] = "adapter" if kind.in_peft else "finetune"
    if kind.in_peft:
        front["library_name"] = "peft"
    front["tags"] = [
        "tangora",
        *(["lora"] if kind.has_factors else []),
        *(["model-merging"] if metadata.fused else []),
    ]
    return "---\n" + dump(front) + "---"


def _title(metadata: Metadata) -> str:
    if metadata.fused:
        tasks = [p.task or p.name for p in metadata.fused.parents]
        title = f"{len(tasks)} tasks in one: {', '.join(tasks)}"
    else:
        title = metadata.task or "An adapter"
    base = f" of {as_code(metadata.base.model)}" if metadata.base.model else ""
    revision = f", revision {as_code(metadata.base.revision)}" if metadata.base.revision else ""
    made = "fused" if metadata.fused else "made"
    return f"# {as_text(title)}\n\n{metadata.of_kind.title}{base}{revision}, {made} with Tangora {metadata.tangora}."


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
    for one in fused.statistics or ():
        summary = f"{one.kind}, {one.rows} {one.split} rows, {one.fingerprint[:16]}"
        rows.append((f"statistics of {as_text(one.task)}", as_text(summary)))
    if fused.heads:
        treatment = {"keep": "one per task, in `heads/`", "fuse": "fused by name: their weighted mean"}
        rows.append(("parameters saved whole", treatment[fused.heads]))
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


def _polished(info: PolishedInfo | None) -> str:
    if info is None:
        return ""
    settings, counts = info.settings, sorted(set(info.rows.values()))
    rows = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    more = sum(info.recombined.values())
    made = f", and {more} made of parts of them" if more else ""
    facts = [
        ("start", "factors drawn at random" if info.start == "random" else f"the adapter {info.start[:16]}"),
        (
            "truncation of the start",
            "none" if not info.start_error else f"{info.start_error:.3g} (relative, Frobenius)",
        ),
        ("rows", f"{rows} {info.split} rows a task, without their labels{made}"),
        ("student", f"{settings.get('student')}, rank {settings.get('rank')}"),
        ("follows", f"{settings.get('follow')}, temperature {settings.get('temperature')}"),
        ("steps", f"{info.step} of {settings.get('steps')}, learning rate {settings.get('learning_rate')}"),
        ("seed", str(info.seed)),
    ]
    if info.mass is not None:
        facts.append(("kept of a token's probability", f"{info.mass:.4f}"))
    experts = [
        (as_text(task), as_code(print_[:16]), f"{info.before[task]:.4f}", f"{info.after[task]:.4f}")
        for task, print_ in info.experts.items()
    ]
    table = as_table(("expert of", "fingerprint", "divergence before, nats", "after"), experts)
    where = "rows that were held out" if info.measured_on == "held-out" else "the same rows"
    stated = as_table(("", ""), [(name, as_text(value)) for name, value in facts])
    return f"## How it was polished\n\n{stated}\n\n{table}\n\nDivergences are measured on {where}."


def _trained(adapter: Adapter) -> str:
    metadata, recipe = adapter.metadata, adapter.metadata.recipe or {}
    training, lora = recipe.get("training") or {}, recipe.get("lora") or {}
    rows = [("mode", metadata.mode), ("task", metadata.task)]
    if (distilled := metadata.distilled) is not None:
        prints = [distilled.teacher] if isinstance(distilled.teacher, str) else list(distilled.teacher.values())
        teachers = f"tangent adapter{'s' * (len(prints) > 1)} {', '.join(print_[:16] for print_ in prints)}"
        data = f"{distilled.rows} unlabelled {distilled.split} rows of {', '.join(distilled.tasks)}"
        rows.append(("distilled from", f"the features of {teachers}, on {data}"))
    if metadata.of_kind.has_factors:
        linearized = _LINEARIZED[metadata.linearize]
        rows += [("linearized", linearized), ("rank", lora.get("r")), ("alpha", lora.get("alpha"))]
        rows.append(("target modules", lora.get("target_modules")))
    rows += [(_LABELS[key], training.get(key)) for key in _LABELS] + [("seed", metadata.seed)]
    if metadata.initial is not None:
        start = f"{metadata.initial.a_init} A₀, seed {metadata.initial.seed}"
        rows.append(("initial values φ₀", start + _fingerprint(metadata.initial.fingerprint)))
    stated = [(label, as_text(_plain(value))) for label, value in rows if value is not None]
    return f"## How it was trained\n\n{as_table(('', ''), stated)}" if stated else ""


_LABELS = {"learning_rate": "learning rate", "steps": "steps", "batch_size": "batch size", "schedule": "schedule"}


def _scores(scores: Mapping[str, Any] | None) -> str:
    if not scores or not isinstance(scores.get("tasks"), Mapping) or not scores["tasks"]:
        return ""
    selection = str(scores.get("selection") or "")
    mark = " †" if selection == "oracle" else ""
    context = [
        f"On the {as_text(str(scores.get('split', 'unknown')))} split",
        _SELECTED.get(selection, as_text(selection)),
    ]
    rows = [(as_text(str(task)), f"{decimal(float(score), 4)}{mark}") for task, score in scores["tasks"].items()]
    return f"## Scores\n\n{'; '.join(part for part in context if part)}.\n\n{as_table(('task', 'score'), rows)}"


def _verified(verified: Mapping[str, Any] | None) -> str:
    if not verified:
        return ""
    against = {"parents": "the sum of its parents in float64", "result": "the fused update in float64"}
    reference = against.get(str(verified.get("reference")), "the update")
    rows = [(f"the files, read by stock peft, against {reference}", "error")]
    again = f"the method evaluated again in float64, at {verified.get('again')} of the sites, against the files"
    rows += [(again, "again_error")]
    rows += [("the parents' own files, read by stock peft", "identity"), ("the same update in other factors", "gauge")]
    errors = [(text, f"{float(verified[key]):.1e}") for text, key in rows if isinstance(verified.get(key), float)]
    probed = verified.get("probed")
    note = f" {probed} of the sites are large, and were compared on 16 random vectors." if probed else ""
    table = as_table(("compared", "largest relative difference of a site"), errors)
    return f"## Verified\n\nWhen it was written, over {verified.get('sites')} sites.{note}\n\n{table}"


def _loading(adapter: Adapter) -> str:
    base = adapter.metadata.base
    if adapter.metadata.of_kind.in_peft:
        text, head, tail = "Stock peft loads it.", "from peft import PeftModel\n", _LOAD
    else:
        text, head, tail = "Tangora adds the differences to the base model's weights.", "import tangora\n", _LOAD_FULL
    if adapter.metadata.expanded:
        text += _TANGENT
    if (base.model or "").startswith("builtin:"):
        imports, made = _BUILTIN, f"load_base(BaseConfig(family={base.family!r}, model={base.model!r})).backbone"
    else:
        imports, made = _base_code(adapter)
    if (rows := vocabulary_of({name: value.shape for name, value in adapter.whole.items()})) is not None:
        made += f"\nbase.resize_token_embeddings({rows})"
    own = [task for task in adapter.heads if task in adapter.records]
    if own:
        text += " The trained head of every task is in `heads/`, beside a JSON file that describes its use."
    for task in [task for task in adapter.heads if task not in own][:1]:
        imports += "from safetensors.torch import load_file\n"
        path = json.dumps(f"path/to/this/folder/heads/{task}.safetensors")
        made += f"\nbase.load_state_dict(load_file({path}), strict=False)"
        text += " First, load the head of one task into the base."
    code = f"{head}{imports}\nbase = {made}\n{tail}"
    return f"## How to load it\n\n{text}\n\n```python\n{code}```"


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


def _provenance(adapter: Adapter) -> str:
    rows = [("adapter", as_code(adapter.fingerprint))]
    if adapter.metadata.base.fingerprint:
        rows.append(("base weights", as_code(adapter.metadata.base.fingerprint)))
    return (
        f"## Fingerprints\n\n{as_table(('', 'sha-256'), rows)}\n\nAll of this in machine-readable form: `tangora.json`."
    )


def _space(space: str) -> str:
    # A card may be written on a machine without the package that defines the space.
    summary = f" ({as_text(SPACES.get(space).summary)})" if space in SPACES else ""
    return as_code(space) + summary


def _fingerprint(value: str | None) -> str:
    return f", fingerprint {value[:16]}" if value else ""


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
