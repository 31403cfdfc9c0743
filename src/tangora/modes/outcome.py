"""Make an adapter, with its provenance, from what a mode has trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tangora.adapters import initial
from tangora.adapters.adapter import Adapter, LoraDetails
from tangora.adapters.metadata import BaseInfo, InitialInfo, Metadata
from tangora.modes.contract import mode_of
from tangora.support.seams import FAMILIES

if TYPE_CHECKING:
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Mode
    from tangora.modes.preparation import Start
    from tangora.tasks import Base, Task
    from tangora.updates.task_vector import LowRank, Update

__all__ = ["adapter_of", "base_info", "task_type"]


def adapter_of(
    base: Base,
    tasks: Sequence[Task],
    config: FinetuneConfig,
    updates: Mapping[str, Update],
    start: Start | None = None,
    adapted: str | None = None,
) -> Adapter:
    """Return the adapter that results from a training.

    Args:
        base: the model that it belongs to.
        tasks: those that it was trained on.
        config: the configuration of the training.
        updates: site, or for kind ``full`` parameter, -> what is added to the base's weight.
        start: φ₀ and peft's configuration, for kind ``lora``.
        adapted: digest of the base's weights on which the updates depend.
    """
    mode = mode_of(config)
    metadata = Metadata(
        kind=mode.kind,
        mode=config.mode,
        train=config.train,
        task=tasks[0].name if len(tasks) == 1 else None,
        base=base_info(base, adapted),
        linearize=mode.linearize,
        initial=_initial(config, start.initial) if start is not None and start.initial is not None else None,
        seed=config.seed,
        recipe=config.resolved().model_dump(mode="json"),
    )
    if start is None:
        return Adapter(updates, metadata)
    named = start.config | {"base_model_name_or_path": base.config.model, "revision": base.commit}
    named["task_type"] = task_type(base, mode)
    return Adapter(updates, metadata, LoraDetails(named, start.initial, start.embeddings))


_TASK_TYPES = {"AutoModelForCausalLM": "CAUSAL_LM", "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM"}
"""The class that loads a family's backbone -> peft's task type."""


def base_info(base: Base, adapted: str | None = None) -> BaseInfo:
    """Return the record of a base in its adapters.

    Args:
        base: the model.
        adapted: digest of the weights of adapted layers, if the updates depend on these.
    """
    where = base.config
    return BaseInfo(
        model=where.model,
        revision=base.commit,
        fingerprint=base.fingerprint,
        family=where.family,
        weights=where.weights,
        adapted=adapted,
    )


def task_type(base: Base, mode: Mode) -> str | None:
    """Return the task type with which peft computes the trained function from the files; None if there is none.

    An adapter with heads has none: with SEQ_CLS or TOKEN_CLS, peft expects the layers of transformers' class for the
    task (``bert.encoder...``) and its head in the same file, and ours are the backbone's (``encoder...``), with the
    head of each task in a file of its own. Neither has an adapter that answers in an expansion, which peft cannot.
    """
    if mode.answers != "weights":
        return None
    return _TASK_TYPES.get(FAMILIES.get(base.config.family).auto_class(base.config.model))


def _initial(config: FinetuneConfig, factors: Mapping[str, LowRank]) -> InitialInfo:
    lora, print_ = config.lora, initial.fingerprint(factors)
    return InitialInfo(seed=config.seed, a_init=lora.a_init, init=lora.init, fingerprint=print_)
