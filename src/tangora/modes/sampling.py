"""Draw tasks: the order in which a joint training takes batches, or rows, from its tasks.

A sampler is a function in `SAMPLERS`: the numbers of rows of the tasks, the number of draws and a generator in, the
number of a task for every draw out. Within a task, rows come in the order of `tangora.modes.trainer.Rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tangora.config.settings import SamplingSettings

__all__ = ["SAMPLERS", "draws"]


def draws(settings: SamplingSettings, sizes: Sequence[int], count: int, seed: int) -> list[int]:
    """Return the number of a task for each of ``count`` draws.

    Args:
        settings: the sampler.
        sizes: of each task, its number of train rows.
        count: how often a task is drawn.
        seed: of random samplers.

    >>> from tangora.config.settings import SamplingSettings
    >>> draws(SamplingSettings(), [10, 30], 5, seed=0)
    [0, 1, 0, 1, 0]
    """
    return SAMPLERS[settings.by](sizes, count, settings.temperature, torch.Generator().manual_seed(seed))


def _turns(sizes: Sequence[int], count: int, temperature: float, generator: torch.Generator) -> list[int]:
    return [draw % len(sizes) for draw in range(count)]


def _uniform(sizes: Sequence[int], count: int, temperature: float, generator: torch.Generator) -> list[int]:
    return _drawn(torch.ones(len(sizes), dtype=torch.float64), count, generator)


def _proportional(sizes: Sequence[int], count: int, temperature: float, generator: torch.Generator) -> list[int]:
    return _drawn(torch.tensor(sizes, dtype=torch.float64), count, generator)


def _temperature(sizes: Sequence[int], count: int, temperature: float, generator: torch.Generator) -> list[int]:
    """Draw a task with probability ``n_t^(1/T) / Σ n^(1/T)``, as in T5 (arXiv:1910.10683, §3.5.2)."""
    return _drawn(torch.tensor(sizes, dtype=torch.float64) ** (1 / temperature), count, generator)


def _drawn(weights: Tensor, count: int, generator: torch.Generator) -> list[int]:
    chosen: list[int] = torch.multinomial(weights, count, replacement=True, generator=generator).tolist()
    return chosen


SAMPLERS: Mapping[str, Callable[[Sequence[int], int, float, torch.Generator], list[int]]] = {
    "turns": _turns,
    "uniform": _uniform,
    "proportional": _proportional,
    "temperature": _temperature,
    "uncertainty": _turns,  # a candidate of every task for each row; the model chooses: tangora.modes.uncertainty
}
"""Name -> sampler, as `tangora.config.settings.SamplingSettings` lists them."""
