"""Untie a base that ties its output head to its input embedding, for adapters that change one of them, or both.

peft adapts layers, not weights: with an adapter on the embedding alone, the model computes with W + ΔW there, and with
W in the head. So an exact result has both tensors, and its configuration does not tie them. `untied` makes the head a
separate tensor before the adapters are paired with the base; `tied_again` undoes it if no adapter changed either end.

This is done if the head's name is known: in causal language models. Models without a head, by their architecture,
have one tensor and no tie. In others (encoder-decoders, masked language models) a change of a tied weight is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tangora.checkpoints.align import Target
from tangora.storage.checkpoint import Checkpoint

__all__ = ["tied_again", "untied"]

_KEY = "tie_word_embeddings"
_HEADLESS = ("Model", "Classification", "QuestionAnswering", "MultipleChoice")
_CAUSAL = ("CausalLM", "LMHeadModel")


def untied(base: Checkpoint) -> Checkpoint:
    """Return the base with its output head as a separate tensor, or unchanged if it is not tied or the head unknown."""
    if not base.tied or base.config.get("is_encoder_decoder"):
        return base
    kinds = base.config.get("architectures") or []
    heads = [name for name in base.tied if name in base.tensors]
    if not any(str(kind).endswith(_CAUSAL) for kind in kinds):
        headless = kinds and all(str(kind).endswith(_HEADLESS) for kind in kinds)
        return replace(base, config=_untied_config(base.config)) if headless and not heads else base
    usual = "embed_out.weight" if base.config.get("model_type") == "gpt_neox" else "lm_head.weight"
    head = heads[0] if heads else usual
    embedding = base.tensors[base.tied[head]]
    return replace(
        base, config=_untied_config(base.config), tensors={**base.tensors, head: replace(embedding, name=head)}
    )


def tied_again(
    base: Checkpoint, split: Checkpoint, targets: Sequence[Target]
) -> tuple[list[Target], Mapping[str, Any], list[str]]:
    """Return the targets of the output, its configuration, and a note if the two tensors are no longer tied.

    Args:
        base: the base.
        split: the result of `untied`.
        targets: the targets on ``split``.
    """
    heads = [name for name in split.tensors if split.tensors[name] is not base.tensors.get(name)]
    ends = {*heads, *(base.tied[name] for name in heads)}
    if not any(target.adapted or target.tails for target in targets if target.name in ends):
        return [target for target in targets if target.name in base.tensors], base.config, []
    what = "input embedding and output head are no longer tied, since adapters change them differently"
    more = sum(split.tensors[name].size for name in heads if name not in base.tensors)
    note = f"{what}: {more / 1e6:.1f} MB more than the base" if more else what
    return list(targets), split.config, [note]


def _untied_config(config: Mapping[str, Any]) -> dict[str, Any]:
    untied_config, nested = {**config, _KEY: False}, config.get("text_config")
    if isinstance(nested, Mapping):
        untied_config["text_config"] = {**nested, _KEY: False}
    return untied_config
