"""Nevergrad, asked one point at a time, without its side effects and repeatable."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Generator, Iterator
from types import SimpleNamespace
from typing import Any

__all__ = ["points"]


def points(size: int, *, budget: int, bound: float, seed: int) -> Generator[tuple[float, ...], float, None]:
    """What NGOpt wants evaluated in ``[-bound, bound]^size``, from zero on; ``send`` it the loss of each.

    The same seed and losses give the same points, and NumPy's global random state is the caller's between them.
    Close it (`contextlib.closing`): it may hold a thread.
    """
    import nevergrad
    import numpy

    others = set(threading.enumerate())
    state = numpy.random.RandomState(seed).get_state()
    try:
        with _window(state) as window:
            space = nevergrad.p.Array(init=numpy.zeros(size), lower=-bound, upper=bound)
            space.random_state = numpy.random.RandomState(seed)
            optimizer = nevergrad.optimizers.NGOpt(parametrization=space, budget=budget)
            point = optimizer.ask()
        for asked in range(1, budget + 1):
            loss = yield tuple(float(x) for x in point.value)
            if asked < budget:  # the last loss would change no point
                # One window for both: an optimizer in a thread of its own works from the tell on.
                with _window(window.state) as window:
                    optimizer.tell(point, loss)
                    _settle(others)
                    point = optimizer.ask()
    finally:
        # Some of NGOpt's choices (Cobyla, at LoraHub's budget) run in a thread that waits for the next loss. It ends
        # when its optimizer is collected; after an exception the traceback keeps that alive, and the process with it.
        for thread in _workers(others):
            thread.stop()


def _workers(others: set[threading.Thread]) -> list[Any]:
    """Nevergrad's threads that are not among ``others``."""
    return [t for t in set(threading.enumerate()) - others if type(t).__module__.startswith("nevergrad.")]


def _settle(others: set[threading.Thread]) -> None:
    """Wait until every worker has put its next point, or its end, where the next ask finds it.

    Otherwise the worker and a surrogate draw from one random state in an order that the machine decides, and an ask
    that comes while a worker is ending waits for ever.
    """
    deadline = time.monotonic() + 10  # for a worker that nobody waits for
    for worker in _workers(others):
        while worker.is_alive() and worker.messages_ask.empty() and time.monotonic() < deadline:
            time.sleep(1e-4)


@contextlib.contextmanager
def _window(state: Any) -> Iterator[SimpleNamespace]:
    """Run Nevergrad quietly on its own global random state, which is afterwards ``.state`` of what is yielded.

    Three faults that larger budgets meet are mended for as long: the quadratic surrogate calls ``float`` on an array
    of one element, which NumPy 2.4 refuses; it stops after 20 seconds of wall time, so that a busy machine would
    find other weights than an idle one; and CMA-ES is seeded by the clock.
    """
    import cma  # type: ignore[import-untyped,unused-ignore]
    import numpy
    from nevergrad.optimization import metamodel

    untimed = SimpleNamespace(EarlyStopping=SimpleNamespace(timer=lambda seconds: lambda *_: None))
    options = cma.evolution_strategy.cma_default_options
    kept = numpy.random.get_state(), metamodel.callbacks, options["seed"]
    window = SimpleNamespace(state=state)
    try:
        numpy.random.set_state(state)
        vars(metamodel).update(float=lambda value: numpy.asarray(value).item(), callbacks=untimed)
        options["seed"] = numpy.nan  # in cma: do not seed
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield window
    finally:
        window.state = numpy.random.get_state()
        numpy.random.set_state(kept[0])
        metamodel.callbacks, options["seed"] = kept[1:]
        vars(metamodel).pop("float", None)
