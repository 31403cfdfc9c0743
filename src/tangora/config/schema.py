"""The models of a recipe. They are frozen, and an unknown key is an error.

    base        the pretrained model, and how its features become logits
    tasks       the data sets: source, columns, labels, metric
    lora        the adapter: rank, alpha, targets, initial values   (defaults for every mode)
    training    rate, steps, schedule                               (defaults for every mode)
    modes       name -> how adapters are trained: train, and changes to lora.* and training.*
    fusion      subsets, methods with their grids or search, selection of coefficients
    evaluation  batch size, bootstrap
    machine     device, dtype, threads
    executor    where the jobs of the run are done

`Recipe.finetune_config` resolves one mode. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)

from tangora.config.comparison import EvaluationConfig, FusionConfig, SubsetConfig
from tangora.config.executor import ExecutorConfig
from tangora.config.fusion import FusionEntry, check_search
from tangora.config.machine import MachineConfig
from tangora.config.mode import ModeConfig
from tangora.config.places import below
from tangora.config.settings import NAME, FinetuneConfig, Frozen, LoraSettings, TrainingSettings, mode_name
from tangora.config.tasks import (
    BaseConfig,
    BaseSettings,
    Source,
    TaskConfig,
    TaskSettings,
    read_base,
    read_tasks,
    settings_at,
)
from tangora.errors import RecipeError
from tangora.support.seams import FAMILIES, METRICS, MODES
from tangora.support.shown import one_line
from tangora.support.validation import did_you_mean, refuse, validate
from tangora.support.yaml import dump

__all__ = [
    "BaseConfig",
    "BaseSettings",
    "EvaluationConfig",
    "FinetuneConfig",
    "FusionConfig",
    "FusionEntry",
    "LoraSettings",
    "ModeConfig",
    "Recipe",
    "Source",
    "SubsetConfig",
    "TaskConfig",
    "TaskSettings",
    "TrainingSettings",
]


Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _once(seeds: list[int]) -> list[int]:
    if twice := [seed for i, seed in enumerate(seeds) if seed in seeds[:i]]:
        raise ValueError(f"{twice[0]} is listed twice: list each seed once")
    return seeds


class Recipe(Frozen):
    """A complete run."""

    name: str = Field(pattern=NAME, description="of the run: its folder is runs/NAME by default")
    title: str = Field(default="", description="of the report")
    description: str = Field(default="", description="text below the report's title")
    seed: Seed = Field(default=0, description="of splits, samples, initial values and trainings")
    seeds: Annotated[list[Seed], AfterValidator(_once)] = Field(
        default_factory=list,
        description="several in place of seed: trainings, fusions and scores are done once with each, and averaged; "
        "splits and sampled subsets are those of the first",
    )
    data: dict[str, str] = Field(default_factory=dict, description="values for ${data.KEY} in any path of the recipe")
    base: Annotated[SerializeAsAny[BaseSettings], BeforeValidator(read_base)] = Field(
        description="the frozen pretrained model, and the family that decides how rows are read"
    )
    tasks: Annotated[list[SerializeAsAny[TaskSettings]], BeforeValidator(read_tasks), Field(min_length=1)] = Field(
        description="the data sets, each with an adapter of its own"
    )
    lora: LoraSettings = Field(default=LoraSettings(), description="shape and initial values of adapters in every mode")
    training: TrainingSettings = Field(default=TrainingSettings(), description="steps, rates, schedule of every mode")
    modes: dict[str, ModeConfig] = Field(
        default_factory=lambda: {"lora": ModeConfig(), "l-lora": ModeConfig(train="l-lora")},
        min_length=1,
        description="name -> a way to train adapters, with what differs from lora and training",
    )
    fusion: FusionConfig = Field(
        default_factory=FusionConfig, description="which sets of tasks are fused, and how they are compared"
    )
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="how scores are measured")
    machine: MachineConfig = Field(default=MachineConfig(), description="device, dtype and threads")
    executor: ExecutorConfig = Field(
        default_factory=ExecutorConfig, description="where jobs are done; changes no result"
    )

    def __repr__(self) -> str:
        tasks = f"{len(self.tasks)} tasks on {self.base.model}"
        seeds = f"seed{'s' if self.seeds else ''} {' '.join(map(str, self.every_seed))}"
        return one_line("Recipe", repr(self.name), tasks, f"modes {' '.join(self.modes)}", seeds)

    @property
    def every_seed(self) -> tuple[int, ...]:
        """The seeds, in order: those of ``seeds``, or that of ``seed``."""
        return tuple(self.seeds) or (self.seed,)

    @property
    def first_seed(self) -> int:
        """The seed of everything that is the same with every seed: splits, limits, sampled subsets, resamples."""
        return self.every_seed[0]

    def at(self, seed: int) -> Recipe:
        """Return the recipe for what is done with one of its seeds; `first_seed` stays."""
        return self.model_copy(update={"seed": seed})

    @property
    def _of_classes(self) -> bool:
        """Whether the logits of every task are over classes."""
        family = FAMILIES.get(self.base.family)
        return all(family.form(task).logits_over == "classes" for task in self.tasks)

    @classmethod
    def settings_at(cls, raw: Mapping[str, Any], location: tuple[int | str, ...]) -> tuple[type[Frozen] | None, int]:
        """Return the class that reads a location of a recipe if other keys decide it, for hints in errors."""
        if location[:1] != ("modes",) or len(location) < 3:
            return settings_at(raw, location)
        if location[2] in ("lora", "training"):
            return LoraSettings if location[2] == "lora" else TrainingSettings, 3
        chosen = raw["modes"][location[1]]
        train = mode_name(chosen.get("train"), chosen.get("linearize"))
        return MODES.get(train).settings if train in MODES else None, 2

    @model_validator(mode="before")
    @classmethod
    def _one_or_several(cls, raw: Any) -> Any:
        """Read ``seeds``: the first is ``seed``, and one alone is the same as ``seed``."""
        if not isinstance(raw, Mapping) or "seeds" not in raw:
            return raw
        if "seed" in raw:
            raise ValueError("seed and seeds are both given: leave one of them out")
        seeds = raw["seeds"]
        if not isinstance(seeds, list):
            return raw
        if not seeds:
            raise ValueError("seeds: there is none: list at least one, such as [0, 1, 2]")
        rest = {key: value for key, value in raw.items() if key != "seeds" or len(seeds) > 1}
        if len(seeds) > 1:
            with suppress(ValidationError):  # then it is refused at its place in seeds
                return {**rest, "seed": TypeAdapter(Seed).validate_python(seeds[0])}
            return rest
        return {**rest, "seed": seeds[0]}

    @model_serializer(mode="wrap")
    def _as_read(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out ``seed`` or ``seeds``: a recipe has one of them."""
        left_out = "seed" if self.seeds else "seeds"
        return {key: value for key, value in handler(self).items() if key != left_out}

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        refuse([*self._of_tasks(), *self._of_modes(), *self._of_fusions()])
        return self

    def _of_tasks(self) -> Iterator[str]:
        """Yield the faults of tasks among each other and with the family."""
        names = [t.name for t in self.tasks]
        if len(set(names)) < len(names):
            yield f"tasks: names must differ; got {', '.join(names)}"
        family = FAMILIES.get(self.base.family)
        for task in self.tasks:
            kind = family.form(task).kind
            for name in task.all_metrics:
                if kind not in METRICS.get(name).takes:
                    takes = " or ".join(sorted(METRICS.get(name).takes))
                    what = f"{name} compares {takes}, but {self.base.family} answers with {kind}"
                    yield f"tasks: {task.name}: {what}: choose another metric"

    def _of_modes(self) -> Iterator[str | RecipeError]:
        """Yield the faults of modes, each with its changes applied."""
        for mode in self.modes:
            if not re.match(NAME, mode):
                yield f"modes: {mode!r} is not a name (letters, digits, '.', '_', '-')"
                continue
            try:
                self.finetune_config(mode)
            except RecipeError as fault:
                yield fault
            yield from self._of_experts(mode)

    def _of_fusions(self) -> Iterator[str]:
        """Yield the faults of the comparison: with numbers of tasks, modes and searches."""
        sizes, count = self.fusion.subsets.sizes, len(self.tasks)
        if not isinstance(sizes, str) and max(sizes) > count:
            yield f"fusion.subsets.sizes: there are {count} tasks; got {max(sizes)}"
        linear = {name: MODES.get(of.train).linear_in_coefficients for name, of in self.modes.items()}
        for entry in self.fusion.methods:
            if unknown := set(entry.modes or ()) - set(self.modes):
                yield f"fusion.methods: {entry.label} names unknown modes {', '.join(sorted(unknown))}"
                continue
            fused = range(2, count + 1) if isinstance(sizes, str) else sizes
            if entry.sizes is not None and not set(entry.sizes) & set(fused):
                got = f"{entry.label} is for subsets of {entry.sizes} tasks, but subsets have {list(fused)} tasks"
                yield f"fusion.methods: {got}"
            expanded = [mode for mode in entry.modes or linear if linear[mode]]
            if entry.polish is not None and entry.polish.by_layers and expanded:
                what = f"experts of {', '.join(expanded)} change no layer's weights"
                fix = "name other modes, or leave initial and objective out of polish"
                yield f"fusion.methods: {entry.label} works layer by layer, and {what}: {fix}"
            try:
                check_search(entry, linear, classes=self._of_classes)
            except ValueError as fault:
                yield str(fault)

    def _of_experts(self, mode: str) -> Iterator[str]:
        """Yield the faults of given experts: unknown tasks, and settings of a training if nothing is trained."""
        chosen, names = self.modes[mode], [task.name for task in self.tasks]
        for task in chosen.experts:
            if task not in names:
                yield f"modes.{mode}.experts: no such task: {task!r}; {did_you_mean(task, names)}"
        idle = [key for key in ("lora", "training") if getattr(chosen, key)]
        if chosen.experts and idle and not self.trained(mode):
            yield f"modes.{mode}: every expert is given, and nothing is trained: leave {idle[0]} out"

    def trained(self, mode: str) -> list[str]:
        """Return the tasks that a mode trains: those for which it is not given an expert."""
        return [task.name for task in self.tasks if task.name not in self.modes[mode].experts]

    def finetune_config(self, mode: str) -> FinetuneConfig:
        """Return the recipe's ``lora`` and ``training`` with the mode's changes applied and the rate filled in.

        Raises:
            RecipeError: the mode is unknown, or one of its keys is.
        """
        if mode not in self.modes:
            raise RecipeError("no such mode", got=mode, where="modes", fix=did_you_mean(mode, list(self.modes)))
        chosen = self.modes[mode]
        where = f"modes.{mode}"
        lora = {**self.lora.model_dump(), **chosen.lora}
        training = {**self.training.model_dump(), **chosen.training}
        common = {
            "mode": mode,
            "train": chosen.train,
            "lora": validate(LoraSettings, lora, f"{where}.lora"),
            "training": validate(TrainingSettings, training, f"{where}.training"),
            "seed": self.seed,
        }
        return validate(FinetuneConfig, {**(chosen.model_extra or {}), **common}, where).resolved()

    def to_yaml(self, folder: Path | None = None) -> str:
        """Return the resolved recipe with every default filled in; with paths relative to the folder of its file."""
        recipe = self if folder is None else below(self, folder)
        return dump(recipe.as_stated().model_dump(mode="json"))

    def as_stated(self) -> Recipe:
        """Return the recipe as a file states it, without whether somebody has agreed to run a model's code."""
        base = self.base.model_copy(update={"trust_remote_code": self.base.trust_remote_code is not False})
        return self.model_copy(update={"base": base})
