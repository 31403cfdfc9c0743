"""Render an adapter's model card: its provenance, how it was made, its scores, how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tangora.adapters.extracted import extraction_section
from tangora.adapters.loading_code import loading
from tangora.adapters.usage import BASE, usage
from tangora.support.markdown import as_code, as_table, as_text
from tangora.support.seams import SPACES
from tangora.support.shown import decimal
from tangora.support.yaml import dump

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.adapters.metadata import FusedInfo, Metadata, PolishedInfo

__all__ = ["render"]

_LINEARIZED = {
    "none": "no",
    "module": "each adapted layer at its start (L-LoRA)",
    "model": "the whole network at the adapter's start (tangent)",
}
_EXPANDED = "This adapter was trained and scored in the first-order expansion of the network at its start."
_OTHERWISE = "gives other answers, often worse ones, and no error. Use the code below."
_WARNING = {
    "lora": f"> **Plain peft loads another function.** {_EXPANDED} From the same files plain peft makes the ordinary "
    f"network with these weights. It {_OTHERWISE}",
    "full": f"> **Added to the weights, these changes are another function.** {_EXPANDED} With the changes in the "
    f"base's weights, the ordinary network {_OTHERWISE}",
}
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
    made = extraction_section(metadata.extracted) or _trained(adapter)
    if metadata.fused is not None:
        made = (
            _routed(metadata.fused)
            if metadata.of_kind.routed
            else _fused(metadata.fused, metadata.polished is not None)
        )
    sections = [_front_matter(metadata), _title(metadata), _warning(metadata), _used(adapter), loading(adapter)]
    sections += [made, _polished(metadata.polished), _scores(metadata), _verified(metadata.verified)]
    sections.append(_provenance(adapter))
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def _front_matter(metadata: Metadata) -> str:
    front: dict[str, Any] = {}
    model, kind = metadata.base.model, metadata.of_kind
    if model and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model):  # a Hub id: the Hub links it
        front["base_model"] = model
        front["base_model_relation"] = "adapter" if kind.in_peft or kind.adds_modules else "finetune"
    if kind.in_peft and not metadata.expanded:  # the Hub shows code of this library, which loads another function
        front["library_name"] = "peft"
    front["tags"] = [
        "tangora",
        *(["lora"] if kind.has_factors else []),
        *(["model-merging"] if metadata.fused else []),
    ]
    return "---\n" + dump(front) + "---"


def _title(metadata: Metadata) -> str:
    if metadata.polished and len(metadata.polished.experts) > 1:  # a parent of its start may answer several
        tasks = list(metadata.polished.experts)
    else:
        tasks = [p.task or p.name for p in metadata.fused.parents] if metadata.fused else []
    if tasks:
        title = f"{len(tasks)} tasks in one: {', '.join(tasks)}"
    else:
        title = metadata.task or ("An adapter" if metadata.extracted is None else metadata.extracted.tuned)
    base = f" of {as_code(metadata.base.model)}" if metadata.base.model else ""
    revision = f", revision {as_code(metadata.base.revision)}" if metadata.base.revision else ""
    made = "fused" if metadata.fused and not metadata.of_kind.routed else "extracted" if metadata.extracted else "made"
    kind = metadata.of_kind.title if metadata.base.adapted is None else "A DoRA adapter"
    return f"# {as_text(title)}\n\n{kind}{base}{revision}, {made} with Tangora {metadata.tangora}."


def _warning(metadata: Metadata) -> str:
    """Return what is most easily done wrong with an adapter of an expansion."""
    if not metadata.expanded:
        return ""
    text = _WARNING[metadata.kind]
    scores = metadata.scores or {}
    if measured := [_both(scores, str(task)) for task in scores.get("as_weights") or ()]:
        text += f" Measured {_where(scores)}: {'; '.join(measured)}."
    return text


def _where(scores: Mapping[str, Any]) -> str:
    split, rows = as_text(str(scores.get("split", "unknown"))), scores.get("rows")
    return f"on the {split} split" if rows is None else f"on {as_text(str(rows))} {split} rows"


def _both(scores: Mapping[str, Any], task: str) -> str:
    own, other = (decimal(float(scores[name][task]), 4) for name in ("tasks", "as_weights"))
    return f"{as_text(task)} {own} in the expansion, {other} in the ordinary network"


def _used(adapter: Adapter) -> str:
    return usage(adapter.records, None if adapter.metadata.base.model else BASE)


def _fused(fused: FusedInfo, is_polished: bool = False) -> str:
    rows = [("method", as_code(fused.method)), ("space", _space(fused.space))]
    rows += [(name, as_code(json.dumps(value))) for name, value in fused.parameters.items()]
    if fused.rank is not None:
        bound = fused.error_bound
        least = "" if bound is None else f" at most: the least with an error of at most {bound:g} at each site"
        rows.append(("rank", f"{fused.rank}{least}"))
    if not is_polished:  # its section says what was cut, and that the rest was trained
        error = fused.truncation_error
        whole = "none: exact" if not error else f"{error:.3g} (relative, Frobenius, over all sites)"
        rows.append(("truncation error", whole))
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
                as_text(parent.source or parent.name),
                as_text(parent.task or "–"),
                weight,
                as_code(parent.fingerprint[:16]),
            )
        )
    note = "\n\nThe weight of every site is in `tangora.json`." if per_site else ""
    table = as_table(("parent", "task", "weight", "fingerprint"), parents)
    return f"## How it was fused\n\n{as_table(('', ''), rows)}\n\n{table}{note}"


def _routed(fused: FusedInfo) -> str:
    rows = [("router", as_code(fused.method))]
    rows += [(name, as_code(json.dumps(value))) for name, value in fused.parameters.items() if value is not None]
    learned = fused.selection or {}
    plain = {k: v for k, v in learned.items() if not isinstance(v, (dict, list))}
    rows += [
        (name.replace("_", " "), as_text(f"{v:.4g}" if isinstance(v, float) else str(v))) for name, v in plain.items()
    ]
    experts = [
        (as_text(p.source or p.name), as_text(p.task or "–"), as_code(p.fingerprint[:16])) for p in fused.parents
    ]
    text = "Every token, or every sample, chooses among the experts, which are what they were."
    tables = [as_table(("", ""), rows), as_table(("expert", "task", "fingerprint"), experts)]
    if "before" in learned and "after" in learned:
        moved = [(as_text(n), f"{b:.4f}", f"{learned['after'][n]:.4f}") for n, b in learned["before"].items()]
        tables.append(as_table(("task", f"{as_text(str(learned.get('objective')))} before", "after"), moved))
    return "\n\n".join(["## How it is routed", text, *tables])


def _followed(settings: Mapping[str, Any]) -> str:
    if settings.get("objective") == "layers":
        return "the outputs of every block, one block after the other"
    return f"{settings.get('follow')}, temperature {settings.get('temperature')}"


def _norm_of(info: PolishedInfo) -> str:
    formed = info.settings.get("initial") == "layers" and info.after != info.before  # else it was no better
    return "of the layers' outputs" if formed else "Frobenius"


def _polished(info: PolishedInfo | None) -> str:
    if info is None:
        return ""
    settings, counts = info.settings, sorted(set(info.rows.values()))
    rows = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    more = sum(info.recombined.values())
    made = f", and {more} made of parts of them" if more else ""
    share = settings.get("labels", 0.0)
    labels = f"with their labels, which have {share:g} of the loss" if share else "without their labels"
    facts = [
        ("start", "factors drawn at random" if info.start == "random" else f"the adapter {info.start[:16]}"),
        (
            "truncation of the start",
            "none" if not info.start_error else f"{info.start_error:.3g} (relative, {_norm_of(info)})",
        ),
        ("rows", f"{rows} {info.split} rows a task, {labels}{made}"),
        ("student", f"{settings.get('student')}, rank {settings.get('rank')}"),
        ("follows", _followed(settings)),
        ("steps", f"{info.step} of {settings.get('steps')}, learning rate {settings.get('learning_rate')}"),
        ("seed", str(info.seed)),
    ]
    if info.cut_error is not None:
        facts.append(("cut to the rank", f"{info.cut_error:.3g} (relative, of the layers' outputs)"))
    if info.mass is not None:
        facts.append(("kept of a token's probability", f"{info.mass:.4f}"))
    experts = [
        (as_text(task), as_code(print_[:16]), f"{info.before[task]:.4f}", f"{info.after[task]:.4f}")
        for task, print_ in info.experts.items()
    ]
    measure = "loss" if share else "divergence"
    table = as_table(("expert of", "fingerprint", f"{measure} before, nats", "after"), experts)
    where = "rows that were held out" if info.measured_on == "held-out" else "the same rows"
    stated = as_table(("", ""), [(name, as_text(value)) for name, value in facts])
    return f"## How it was polished\n\n{stated}\n\n{table}\n\n{measure.capitalize()} is measured on {where}."


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


def _scores(metadata: Metadata) -> str:
    scores = metadata.scores
    if not scores or not isinstance(scores.get("tasks"), Mapping) or not scores["tasks"]:
        return ""
    selection = str(scores.get("selection") or "")
    mark = " †" if selection == "oracle" else ""
    where = _where(scores)
    context = [where[0].upper() + where[1:], _SELECTED.get(selection, as_text(selection))]
    other: Mapping[str, Any] = scores.get("as_weights") or {}
    head, rows = ["task", "score"], []
    if other:
        head = ["task", "in the expansion", "in plain peft" if metadata.of_kind.in_peft else "added to the weights"]
    for task, score in scores["tasks"].items():
        plain = [f"{decimal(float(other[task]), 4)}{mark}" if task in other else "–"] if other else []
        rows.append((as_text(str(task)), f"{decimal(float(score), 4)}{mark}", *plain))
    return f"## Scores\n\n{'; '.join(part for part in context if part)}.\n\n{as_table(head, rows)}"


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


def _provenance(adapter: Adapter) -> str:
    rows = [("adapter", as_code(adapter.fingerprint))]
    if adapter.metadata.base.fingerprint:
        held = adapter.metadata.base.weights
        what = "base weights" if held in (None, "float32") else f"base weights, held in {held}"
        rows.append((what, as_code(adapter.metadata.base.fingerprint)))
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
