"""A model class of transformers without weights: its modules, and the parameter that each stored tensor is loaded into.

transformers renames tensors when it loads a checkpoint: the names in memory, from which an adapter's sites follow, are
not always those in the file. The class itself, on the meta device, has the names in memory; transformers' own mapping
relates the two. No code of a checkpoint is run: a class that transformers does not have is not built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tangora.errors import FileError
from tangora.support.files import read_json
from tangora.support.hub import HubReference, hub_reference

__all__ = [
    "Architecture",
    "architectures_of",
    "build",
    "class_names",
    "class_of",
    "default_architecture",
    "own_architectures",
    "stored_config",
    "stored_folder",
    "with_classes",
]

_CONFIG = "config.json"
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_LIMIT = 4096  # layers or experts; a damaged file must not make a model that never ends
_DOWNLOADS = ("use_timm_backbone", "use_pretrained_backbone", "backbone")
_TASKS = {
    "CAUSAL_LM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "SEQ_2_SEQ_LM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "SEQ_CLS": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "TOKEN_CLS": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "QUESTION_ANS": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "FEATURE_EXTRACTION": "MODEL_MAPPING_NAMES",
}


@dataclass(frozen=True, eq=False)
class Architecture:
    """A model class with one configuration.

    Attributes:
        name: the class.
        modules: path -> class of the module.
        parameters: name in memory -> shape.
        mapping: transformers' renamings and conversions of stored names.
        prefix: the attribute that holds the base model, which a stored name may have or lack.
    """

    name: str
    modules: Mapping[str, str]
    parameters: Mapping[str, tuple[int, ...]]
    mapping: Sequence[Any] = field(repr=False)
    prefix: str

    def in_memory(self, name: str) -> str | None:
        """Return the parameter that a stored tensor is loaded into, unchanged; None if there is none."""
        from transformers.core_model_loading import rename_source_key  # deferred: transformers takes seconds to import

        renamed, converted = rename_source_key(name, *self._split, self.prefix or None, self._present)
        if renamed not in self.parameters and name in self.parameters:
            return name
        return renamed if renamed in self.parameters and converted is None else None

    def kind(self, name: str) -> str | None:
        """Return the class of the module that a stored weight belongs to; None if it is not known."""
        parameter = self.in_memory(name)
        return None if parameter is None else self.modules.get(parameter.rpartition(".")[0])

    def module(self, path: str) -> str | None:
        """Return the present path of a module; None if the class has none.

        Layers have equal modules, so that those of another number are known too.
        """
        if path in self.modules:
            return path
        for numbers, name in (([], path), (_NUMBER.findall(path), _NUMBER.sub("0", path))):
            found = name if name in self.modules else (self.in_memory(f"{name}.weight") or "").removesuffix(".weight")
            if found and (not numbers or len(_NUMBER.findall(found)) == len(numbers)):
                rest = iter(numbers)
                return _NUMBER.sub(lambda _: next(rest), found) if numbers else found  # noqa: B023
        return None

    @cached_property
    def _split(self) -> tuple[list[Any], list[Any]]:
        from transformers.core_model_loading import WeightConverter  # deferred: as above

        converters = [entry for entry in self.mapping if isinstance(entry, WeightConverter)]
        return [entry for entry in self.mapping if not isinstance(entry, WeightConverter)], converters

    @cached_property
    def _present(self) -> dict[str, Any]:
        return dict.fromkeys(self.parameters, True)


def own_architectures(config: Mapping[str, Any]) -> list[Architecture]:
    """Return the classes that ``config.json`` names; none that transformers does not have."""
    return list(_built(config, _own(config)))


def architectures_of(config: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> list[Architecture]:
    """Return the classes that an adapter may have been made for.

    Args:
        config: the base's ``config.json``.
        adapter: ``adapter_config.json``. If it names the class, that is the only one; else the class of its task is
            followed by those that the base names.
    """
    return list(_built(config, class_names(config, adapter)))


def class_names(config: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> list[str]:
    """Return the names of the classes of `architectures_of`, whether transformers has them or not."""
    named = class_of(adapter)
    if named is not None:
        return [named]
    names = [_task_class(config, task) for task in ((adapter or {}).get("task_type"),) if task]
    everything = [*names, *_own(config), _task_class(config, "FEATURE_EXTRACTION")]
    return [name for name in dict.fromkeys(everything) if name]


def with_classes(config: Mapping[str, Any], classes: Sequence[str], tasks: Sequence[Any]) -> list[Architecture]:
    """Return the architectures of classes, of tasks, and of the base's own class."""
    by_task = [name for task in tasks if (name := _task_class(config, task)) is not None]
    return list(_built(config, list(dict.fromkeys([*classes, *by_task, *_own(config)]))))


def default_architecture(name: str) -> Architecture | None:
    """Return the architecture of a class with its default configuration."""
    return _architecture("null", name)


def stored_config(model: str | None) -> Mapping[str, Any] | None:
    """Return the configuration of a model in a local folder or in the Hub's cache; None if it is in neither."""
    try:
        folder = stored_folder(model)
        return None if folder is None else read_json(folder / _CONFIG)
    except FileError:
        return None


def stored_folder(model: str | None, revision: str | None = None) -> Path | None:
    """Return the folder of a model, which is a local folder or in the Hub's cache; None if it is in neither."""
    if not model:
        return None
    try:
        if (path := Path(model) / _CONFIG).is_file():
            return path.parent
        from huggingface_hub import try_to_load_from_cache  # deferred: most adapters need no configuration

        reference = hub_reference(model) or HubReference(model)
        name = "/".join(filter(None, [reference.subfolder, _CONFIG]))
        found = try_to_load_from_cache(reference.repository, name, revision=revision or reference.revision)
    except (ImportError, ValueError, OSError):
        return None
    return Path(found).parent if isinstance(found, str) else None


def build(config: Mapping[str, Any] | None, name: str) -> Any:
    """Return the model on the meta device; None if transformers cannot build it from this configuration.

    Args:
        config: ``config.json``; None for the class's defaults.
        name: the class.
    """
    try:
        import torch  # deferred: checkpoints are fused without it
        import transformers  # deferred: takes seconds to import, and most names need no model

        kind = getattr(transformers, name, None)
        if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
            return None
        if config is not None and not _harmless(config):
            return None
        with _quiet(), torch.device("meta"):
            chosen: Any = kind
            settings = chosen.config_class() if config is None else _settings(config, chosen)
            return None if settings is None else chosen(settings).eval()
    except Exception:  # whatever a class raises on a configuration that it does not expect
        return None


def _built(config: Mapping[str, Any], names: Sequence[str]) -> Iterator[Architecture]:
    text = json.dumps(config, sort_keys=True, default=str)
    yield from (found for name in names if (found := _architecture(text, name)) is not None)


@lru_cache(maxsize=16)
def _architecture(text: str, name: str) -> Architecture | None:
    model = build(json.loads(text), name)
    if model is None:
        return None
    from transformers.conversion_mapping import get_model_conversion_mapping  # deferred: as in `build`

    modules = {path: type(module).__name__ for path, module in model.named_modules()}
    parameters = {path: tuple(tensor.shape) for path, tensor in model.state_dict().items()}
    return Architecture(name, modules, parameters, get_model_conversion_mapping(model), model.base_model_prefix)


def _settings(config: Mapping[str, Any], kind: Any) -> Any:
    """Return the configuration of a class: the whole one, or the only nested one of its type."""
    from transformers import AutoConfig, PretrainedConfig  # deferred: as in `build`

    rest = {k: v for k, v in config.items() if k not in ("model_type", "quantization_config", "auto_map")}
    whole = AutoConfig.for_model(config["model_type"], **rest)
    if isinstance(whole, kind.config_class):
        return whole
    nested = [v for v in vars(whole).values() if isinstance(v, PretrainedConfig) and isinstance(v, kind.config_class)]
    return nested[0] if len(nested) == 1 else None


def _harmless(config: Any) -> bool:
    """Return whether no setting makes a model that is endless, or that is loaded from elsewhere."""
    if isinstance(config, Mapping):
        if any(config.get(key) for key in _DOWNLOADS):
            return False
        counts = [v for k, v in config.items() if any(w in str(k) for w in ("layer", "expert", "block", "depth"))]
        return all(v <= _LIMIT for v in counts if isinstance(v, int)) and all(map(_harmless, config.values()))
    return all(map(_harmless, config)) if isinstance(config, list) else True


def class_of(adapter: Mapping[str, Any] | None) -> str | None:
    """Return the class of the base that an adapter's configuration names; peft writes it if there is no task."""
    mapping = (adapter or {}).get("auto_mapping")
    named = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    return named if isinstance(named, str) else None


def _task_class(config: Mapping[str, Any], task: Any) -> str | None:
    if task not in _TASKS:
        return None
    try:
        from transformers.models.auto import modeling_auto  # deferred: as in `build`
    except ImportError:
        return None
    found = getattr(modeling_auto, _TASKS[task]).get(config.get("model_type"))
    return found if isinstance(found, str) else None


def _own(config: Mapping[str, Any]) -> list[str]:
    listed = config.get("architectures")
    return [str(name) for name in listed] if isinstance(listed, list | tuple) else []


class _quiet:
    """Silence transformers' remarks on a configuration, which the user has not asked it to load."""

    def __enter__(self) -> None:
        from transformers.utils import logging  # deferred: as in `build`

        self.before = logging.get_verbosity()
        logging.set_verbosity_error()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging  # deferred: as in `build`

        logging.set_verbosity(self.before)
