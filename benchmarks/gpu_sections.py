"""One section of `gpu.py` in a process of its own: ``python gpu_sections.py SECTION --out FILE --seconds 100``.

What is measured is written to the file after every part of a section, so that a section that is stopped has told what
it had. A contender that fails is left out, with its error. This module imports nothing heavy: `gpu_merge` starts
processes from here, and a child's peak resident set would start at its parent's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gpu_merge
import gpu_steps
from gpu_turns import Save, freed, in_turns, parts, timed, tried

NETWORKS = {"full": ("clip-vit-b16", "llama-1b"), "tiny": ("tiny-clip", "tiny-llama")}
LAYERS = {"full": (1024, 4096, 8, 1), "tiny": (64, 128, 2, 1)}
"""Of the adapters that are fused: hidden and inner width, layers, and how many of them peft does."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    options.end = time.monotonic() + options.seconds

    def save(found: Mapping[str, Any]) -> None:
        scratch = options.out.with_suffix(".part")
        scratch.write_text(json.dumps(found, indent=1), encoding="utf-8")
        scratch.replace(options.out)

    SECTIONS[options.section](options, save)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=100.0, help="after which no round begins")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--layers", type=int, default=4, help="of the checkpoints that are merged")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="where files are made")
    return parser


def about(options: argparse.Namespace, save: Save) -> None:
    """What the device is, or that there is none."""
    import torch
    from step_worker import versions

    found: dict[str, Any] = {"versions": versions(), "threads": torch.get_num_threads(), "available": True}
    if options.device.startswith("cuda"):
        found["available"] = torch.cuda.is_available()
    if options.device.startswith("cuda") and found["available"]:
        properties = torch.cuda.get_device_properties(options.device)
        found |= {"name": properties.name, "memory": properties.total_memory, "cuda": torch.version.cuda}
    save({"name": options.device, "memory": None, "cuda": None, **found})


def _each_network(
    measure: Callable[[str, argparse.Namespace, float], dict[str, Any]], options: argparse.Namespace, save: Save
) -> None:
    """Measure every network in its share of the time, and save after each."""
    found: dict[str, Any] = {"works": {}}
    for name, until in parts(NETWORKS[options.size], options.end):
        found["works"][name] = tried(lambda name=name, until=until: measure(name, options, until))
        freed(options.device)
        save(found)


def scoring(options: argparse.Namespace, save: Save) -> None:
    """An adapter scored on every row of a task: by peft and a plain loop, and by an `Evaluator`."""
    _each_network(_scored, options, save)


def _scored(name: str, options: argparse.Namespace, until: float) -> dict[str, Any]:
    from gpu_work import WORKS, adapters_of, make_base, make_task, peft_model, plain_scores

    from tangora.evaluation.evaluator import Evaluator, answering
    from tangora.tasks import collate, predict

    work = WORKS[name]
    base, task = make_base(work, options.device, options.dtype), make_task(work)
    rows, batches = task.splits["test"], task.splits["test"].batches(work.batch, collate(task, base))
    (adapter,), (direction,) = (
        adapters_of(work, base.backbone, 1, tangent=tangent).values() for tangent in (False, True)
    )
    plain = peft_model(work, adapter, options.device, options.dtype)
    merged = peft_model(work, adapter, options.device, options.dtype).merge_and_unload()
    keys = iter(range(10**9))  # of the candidates: equal ones are not scored again

    def evaluated(candidate: Any) -> Callable[[], object]:
        scorer = Evaluator(base, [task], batch_size=work.batch)
        return lambda: scorer.evaluate(str(next(keys)), lambda: candidate, [task.name], "test")

    works = {
        "peft": lambda: plain_scores(plain, task, batches, options.dtype),
        "peft_merged": lambda: plain_scores(merged, task, batches, options.dtype),
        "tangora": evaluated(adapter),
        "tangora_tangent": evaluated(direction),
    }
    taken = in_turns({key: timed(what, options.device) for key, what in works.items()}, until, options)

    def compared() -> dict[str, Any]:
        answers, losses = plain_scores(plain, task, batches, options.dtype)
        found = {}
        for key, candidate in (("ours", adapter), ("without", None)):
            with answering(candidate, base) as model_of:
                found[key] = predict(model_of(task), rows, work.batch)
        return {
            "difference": float(abs(found["ours"].losses - losses.numpy()).max() / losses.abs().max()),
            "effect": float(abs(found["without"].losses - losses.numpy()).max() / losses.abs().max()),
            "agreeing": sum(map(int.__eq__, found["ours"].plain, answers)) / len(rows),
        }

    return {"title": work.title, "rows": len(rows), "contenders": taken, **tried(compared)}


def columns(options: argparse.Namespace, save: Save) -> None:
    """Columns of several task vectors, beside a forward pass of the tangent model for each of them."""
    _each_network(_columns_of, options, save)


def _columns_of(name: str, options: argparse.Namespace, until: float) -> dict[str, Any]:
    import torch
    from gpu_work import WORKS, adapters_of, make_base, make_task, plain_scores
    from sweep_work import forward_logits

    from tangora.tangent import make_columns
    from tangora.tasks import collate

    work = WORKS[name]
    base, task = make_base(work, options.device, options.dtype), make_task(work, work.column_rows)
    vectors = adapters_of(work, base.backbone, work.vectors, tangent=True)
    units = torch.eye(work.vectors).tolist()
    batches = task.splits["test"].batches(work.batch, collate(task, base))
    works = {
        "columns": lambda: make_columns(base, task, "test", vectors, batch_size=work.batch),
        "forwards": lambda: [forward_logits(base, task, vectors, unit, work.batch) for unit in units],
        "plain": lambda: plain_scores(base.backbone, task, batches, options.dtype),
    }
    taken = in_turns({key: timed(what, options.device) for key, what in works.items()}, until, options)

    def compared() -> dict[str, Any]:
        made = make_columns(base, task, "test", vectors, batch_size=work.batch)
        expected = forward_logits(base, task, vectors, units[-1], work.batch)
        wrong, most = (made.logits(torch.tensor(units[-1])) - expected).abs().max(), expected.abs().max()
        return {"difference": float(wrong / most), "effect": float((expected - made.origin).abs().max() / most)}

    about = {"title": work.title, "rows": work.column_rows, "vectors": work.vectors}
    return {**about, "contenders": taken, **tried(compared)}


def adapters(options: argparse.Namespace, save: Save) -> None:
    """Eight adapters fused at a rank by Tangora and by peft, on the CPU and where their factors are on the device."""
    import fuse_adapters
    import torch

    sizes = fuse_adapters.Sizes(*LAYERS[options.size])
    found: dict[str, Any] = {"sizes": vars(sizes) | {"adapters": fuse_adapters.ADAPTERS, "rank": fuse_adapters.RANK}}
    found["works"] = {}
    tools: dict[str, Any] = {"tangora": fuse_adapters._tangora, "peft": fuse_adapters._peft}
    torch.linalg.svd(torch.eye(8, device=options.device))  # loads the library
    folders = {"tangora": options.folder / "all", "peft": options.folder / "few"}
    fuse_adapters.make(folders["tangora"], sizes.layers, sizes)
    fuse_adapters.make(folders["peft"], sizes.peer_layers, sizes)
    for name, until in parts(list(fuse_adapters.WORKS), options.end):
        errors: dict[str, float] = {}

        def fused(tool: str, role: str, work: str = name, errors: dict[str, float] = errors) -> float:
            device = "cpu" if role == "host" else options.device
            sample = tools[tool](work, folders[tool], sizes, device)
            errors[f"{tool}/{role}"] = sample["error"]
            return float(sample["seconds"])

        works = {f"{t}/{r}": lambda t=t, r=r: fused(t, r) for r in ("host", "device") for t in tools}
        taken = in_turns(works, until, options, warm=False)
        found["works"][name] = {"contenders": taken, "errors": errors}
        save(found)


SECTIONS: dict[str, Callable[[argparse.Namespace, Save], None]] = {
    "about": about,
    "steps": gpu_steps.steps,
    "scoring": scoring,
    "columns": columns,
    "adapters": adapters,
    "merge": gpu_merge.merge,
    "merge_calls": gpu_merge.merge_calls,
}

if __name__ == "__main__":
    main()
