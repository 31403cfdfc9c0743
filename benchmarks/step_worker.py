"""One contender in one process: ``python step_worker.py SHAPE CONTENDER MODE``; `train_step.py` starts it.

It answers in JSON lines on standard output; whatever libraries print goes to standard error.

- ``check``: logits and the loss's gradient by B, at B = 0 and at a given B, compared with those in ``--reference``
- ``memory``: the peak of a few steps, and what the model alone occupies
- ``time``: a first line when warm, then for every line ``N`` read the seconds of N steps
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import sys
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from step_models import CONTENDERS, EXPANSIONS, SHAPES, Shape, build, make_batch, put_b

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

WARM_UP = 2
MEMORY_STEPS = 3


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nothing but answers may reach the parent
    import torch

    torch.set_num_threads(options.threads)
    mode = {"check": _check, "memory": _memory, "time": _time}[options.mode]
    mode(SHAPES[options.shape], options, answers)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("mode", choices=["check", "memory", "time"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="of the base and of the products of a step")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", type=Path, help="folder: what it lacks is written, what it has is compared with")
    return parser


class Trainer:
    """A model, its optimizer and one batch."""

    def __init__(self, shape: Shape, options: argparse.Namespace) -> None:
        import torch

        self.device, self.dtype = options.device, getattr(torch, options.dtype)
        self.model = build(shape, options.contender, options.seed, options.device, options.dtype)
        self.batch = make_batch(shape, options.seed, options.device)
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trainable, lr=1e-4)

    def forward(self) -> dict[str, Tensor]:
        """Loss and logits of the batch, with products in the dtype."""
        import torch

        half = self.dtype != torch.float32
        with torch.autocast(torch.device(self.device).type, self.dtype if half else torch.bfloat16, enabled=half):
            outputs: dict[str, Tensor] = self.model(**self.batch)
        return outputs

    def step(self) -> None:
        """Forward, backward, update."""
        self.forward()["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()


def _time(shape: Shape, options: argparse.Namespace, answers: IO[str]) -> None:
    trainer = Trainer(shape, options)
    for _ in range(WARM_UP):
        trainer.step()
    trainer.wait()
    _answer(answers, {"versions": versions(), **describe(trainer)})
    for line in sys.stdin:
        count = int(line)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            trainer.step()
        trainer.wait()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        _answer(answers, {"seconds": wall / count, "cpu_seconds": cpu / count})


def _memory(shape: Shape, options: argparse.Namespace, answers: IO[str]) -> None:
    trainer = Trainer(shape, options)
    built = _occupied(trainer.device)
    for _ in range(MEMORY_STEPS):
        trainer.step()
    peak = _peak(trainer.device)
    _answer(answers, {"built": built, "peak": peak, "step": peak - built, "saved": saved_for_backward(trainer)})


def _check(shape: Shape, options: argparse.Namespace, answers: IO[str]) -> None:
    from safetensors.torch import load_file, save_file

    files = sorted(options.reference.glob("*.safetensors"))
    references = {file.stem: load_file(file)["value"] for file in files}
    errors = differences(outcome(Trainer(shape, options), options.seed), options.contender, references)
    for name in references.keys() - {file.stem for file in files}:
        save_file({"value": references[name]}, options.reference / f"{name}.safetensors")
    _answer(answers, errors)


def differences(
    outputs: dict[str, Tensor], contender: str, references: MutableMapping[str, Tensor]
) -> dict[str, float]:
    """Of `outcome` from the references, relative to their largest entries; what these lack is added."""
    errors = {}
    for name, value in outputs.items():
        elsewhere = contender in EXPANSIONS and not name.endswith("_at_start")
        reference = references.setdefault(f"{name}{'_of_the_expansion' if elsewhere else ''}", value)
        errors[name] = relative_error(value, reference)
    errors["effect_of_b"] = relative_error(outputs["logits"], outputs["logits_at_start"])
    return errors


def outcome(trainer: Trainer, seed: int) -> dict[str, Tensor]:
    """Logits and all gradients by B, at B = 0 and with B set; dropout off."""
    trainer.model.eval()
    found = {f"{name}_at_start": value for name, value in _answers(trainer).items()}
    put_b(trainer.model, seed)
    return {**found, **_answers(trainer)}


def _answers(trainer: Trainer) -> dict[str, Tensor]:
    import torch

    trainer.model.zero_grad(set_to_none=True)
    output = trainer.forward()
    output["loss"].backward()
    gradients = [p.grad.flatten() for name, p in trainer.model.named_parameters() if "lora_B" in name]
    found = {"logits": output["logits"].detach(), "gradient": torch.cat(gradients)}
    return {name: value.cpu().contiguous() for name, value in found.items()}


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Largest difference in units of the reference's largest entry."""
    return float((value - reference).abs().max() / reference.abs().max())


def saved_for_backward(trainer: Trainer) -> int | None:
    """Bytes that the forward pass keeps for the backward pass, beyond parameters and batch; each storage once.

    None inside `torch.func.jvp`, whose tensors show no storage.
    """
    import torch

    kept: dict[int, int] = {}
    known = {t.untyped_storage().data_ptr() for t in (*trainer.model.parameters(), *trainer.batch.values())}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output: Any = trainer.forward()
    except RuntimeError as error:
        if "invalid python storage" in str(error):
            return None
        raise
    del output
    return sum(kept.values())


def describe(trainer: Trainer) -> dict[str, object]:
    """What may be asked about a contender later."""
    model: nn.Module = trainer.model
    config = next(m.config for m in model.modules() if hasattr(m, "config"))
    return {
        "trainable": sum(p.numel() for p in trainer.trainable),
        "parameters": sum(p.numel() for p in model.parameters()),
        "attention": getattr(config, "_attn_implementation", None),
        "device_name": _device_name(trainer.device),
    }


def versions() -> dict[str, str]:
    """Of the interpreter and of every package that has a part in a step."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "tangora", "fusion-bench"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    import torch

    return torch.cuda.get_device_name()


def _occupied(device: str) -> int:
    """Bytes now in use: the resident set, or the tensors on the GPU, whose peak is counted from here."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if not Path("/proc/self/statm").exists():
        return _peak(device)
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _peak(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes


def _answer(answers: IO[str], value: object) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
