"""The class of transformers that an adapter's base is loaded with, and the number of labels of its head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tangora.adapters.formats.lora.settings import HEADS, is_in_saved_module
from tangora.storage.vocabulary import is_vocabulary

__all__ = ["head_of", "labels_of", "model_class", "vocabulary_of"]

_AUTO = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""peft's task type -> the class."""

_HEADS = sorted({module for modules in HEADS.values() for module in modules})


def model_class(config: Mapping[str, Any] | None) -> str | None:
    """Return the name of the class in transformers; None if the adapter's configuration names none.

    Args:
        config: ``adapter_config.json``. peft writes ``auto_mapping`` if there is no ``task_type``.

    >>> model_class({"task_type": "CAUSAL_LM"})
    'AutoModelForCausalLM'
    """
    mapping = (config or {}).get("auto_mapping")
    table = mapping if isinstance(mapping, Mapping) else {}
    named, library = (table.get(key) for key in ("base_model_class", "parent_library"))
    if isinstance(named, str) and named.isidentifier() and str(library or "transformers").startswith("transformers"):
        return named
    return _AUTO.get(str((config or {}).get("task_type")))


def head_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Return the parameters of a classifier or of a head that answers questions.

    Args:
        shapes: parameter -> shape, of what an adapter saved whole.
    """
    return {name: shape for name, shape in shapes.items() if is_in_saved_module(name, _HEADS)}


def labels_of(shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Return the number of outputs of a head: the rows of its last layer, the only one that others do not follow.

    >>> labels_of({"classifier.dense.weight": (8, 8), "classifier.out_proj.weight": (3, 8)})
    3
    """
    weights = {name: shape for name, shape in head_of(shapes).items() if name.endswith(".weight") and len(shape) == 2}
    if len(weights) > 1:
        last = [n for n in weights if n.endswith(("out_proj.weight", ".classifier.weight", ".score.weight"))]
        last = last or [n for n in weights if n in ("classifier.weight", "score.weight", "qa_outputs.weight")]
        weights = {name: weights[name] for name in last}
    return weights.popitem()[1][0] if len(weights) == 1 else None


def vocabulary_of(shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Return the number of tokens whose embeddings an adapter saved whole; None if it saved none.

    >>> vocabulary_of({"model.embed_tokens.weight": (66, 8), "lm_head.weight": (66, 8)})
    66
    """
    rows = {shape[0] for n, shape in shapes.items() if n.endswith(".weight") and len(shape) == 2 and is_vocabulary(n)}
    return rows.pop() if len(rows) == 1 else None
