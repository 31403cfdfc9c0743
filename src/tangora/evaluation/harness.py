"""Score adapters by tasks of EleutherAI's lm-evaluation-harness, with one base model for all of them.

The harness has its own tasks, prompts and metrics; a model is asked for log-likelihoods and for generated texts. Here
these come from the base of the family `causal-lm`, in which the weights of one adapter after another are swapped, or
the network is expanded in its direction. Tokens, truncation and stop texts follow the harness's own ``hf`` model, so
that its scores are those of the merged model there.

The package `lm-eval` is not an extra of Tangora, since one of the packages that it needs has no permissive licence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangora.config.language import LanguageModel, LanguageTask
from tangora.errors import ArgumentError, ModelError
from tangora.evaluation.evaluator import answering
from tangora.support.seams import FAMILIES
from tangora.support.validation import did_you_mean
from tangora.tasks.batches import IGNORED
from tangora.tasks.contract import AnswerForm
from tangora.tasks.harness_rows import manager_of
from tangora.tasks.language.greedy import Generation
from tangora.tasks.language.readout import LanguageReadout
from tangora.tasks.language.task import LanguageModelTask
from tangora.tasks.values import evaluating

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.adapters.adapter import Adapter
    from tangora.tasks import Base, TaskModel
    from tangora.tasks.values import Batch

__all__ = ["HarnessScores", "harness_scores"]

HarnessScores = Mapping[str, Mapping[str, float]]
"""Task of the harness -> metric (such as ``acc`` or ``exact_match,strict-match``) -> score."""

_SOURCE = {"csv": {"train": "-", "test": "-"}}  # a task needs one, and the harness brings the rows


def harness_scores(
    candidates: Mapping[str, Callable[[], Adapter | None]],
    base: Base,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 16,
    same_base: bool = False,
    on_candidate: Callable[[str], None] | None = None,
) -> dict[str, HarnessScores]:
    """Score adapters, and the base alone, by tasks of the harness.

    Args:
        candidates: name -> loads an adapter of any mode; None stands for the base alone.
        base: of the family `causal-lm`; its weights are restored.
        tasks: names of tasks or groups of the harness, or of those in ``include``.
        include: a folder with tasks of your own, as YAML files.
        limit: the first rows of each task; None for all.
        shots: examples in the prompt; None for the number that each task sets.
        batch_size: rows per forward pass.
        same_base: accept adapters of another base.
        on_candidate: called with the name of each candidate that is done.

    Raises:
        MissingExtraError: the package `lm-eval` is not installed.
        ArgumentError: no such task.
        ModelError: the base is of another family, or an adapter does not fit it.
    """
    manager = manager_of(include)
    from lm_eval import simple_evaluate  # deferred: takes seconds

    if base.config.family != "causal-lm":
        fix = "load the base with family causal-lm"
        raise ModelError("the harness scores decoders", got=base.config.family, where="base.family", fix=fix)
    for name in tasks:
        if name not in manager.all_tasks:
            fix = did_you_mean(name, list(manager.all_tasks))
            raise ArgumentError("the harness has no such task", got=name, where="--lm-eval", fix=fix)
    found: dict[str, HarnessScores] = {}
    for candidate, load in candidates.items():
        with _model(load(), base, batch_size, same_base) as model:
            results = simple_evaluate(
                model=model,
                tasks=list(tasks),
                num_fewshot=shots,
                limit=limit,
                task_manager=manager,
                bootstrap_iters=0,
                log_samples=False,
                verbosity="ERROR",
            )
        found[candidate] = {name: dict(_numbers(values)) for name, values in results["results"].items()}
        if on_candidate is not None:
            on_candidate(candidate)
    return found


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the metrics among the harness's results, without their errors; the filter ``none`` is left out."""
    for name, value in values.items():
        metric, _, chosen = name.partition(",")
        if isinstance(value, (int, float)) and "stderr" not in metric and chosen:
            yield (metric if chosen == "none" else name), float(value)


@contextmanager
def _model(adapter: Adapter | None, base: Base, batch_size: int, same_base: bool) -> Iterator[Any]:
    """Yield a model of the harness that answers with an adapter."""
    with answering(adapter, base, same_base=same_base) as model_of:
        model = model_of(_task(base))
        with evaluating(model):
            yield _language_model(model, base, batch_size)


def _task(base: Base, stop: Sequence[str] = (), most: int = 1) -> LanguageModelTask:
    """Return a task without rows, with the settings of a generation."""
    config = LanguageTask(name="harness", source=_SOURCE, stop=list(stop), max_new_tokens=most)
    return LanguageModelTask(
        "harness", "causal-lm", "exact_match", [], {}, form=AnswerForm("text", "tokens"), config=config
    )


class _Plain(LanguageReadout):
    """Answers with generated texts as they are: stop texts count from the first character, and white space is kept."""

    def answer(
        self, backbone: nn.Module, inputs: Batch, labels: Tensor, settle: Callable[[Tensor], Tensor] | None, /
    ) -> tuple[list[Any], Float[Tensor, " batch"]]:
        """Return texts, and losses that are not computed."""
        start = int(inputs["boundary"][0])
        generation = Generation(backbone, self._most, self._words.ends, self._stopped, settle)
        answers = generation.answers(inputs["input_ids"][:, :start], inputs["attention_mask"][:, :start])
        return [self._text(ids) for ids in answers], torch.zeros(len(answers))

    def _stopped(self, ids: list[int]) -> bool:
        text = self._text(ids)
        return any(stop in text for stop in self._config.stop)


def _language_model(model: TaskModel, base: Base, batch_size: int) -> Any:
    """Return an instance of the harness's base class, which exists only if the harness is installed."""
    from lm_eval.api.model import TemplateLM  # deferred: optional
    from lm_eval.models.utils import (  # deferred: optional
        handle_stop_sequences,
        normalize_gen_kwargs,
        postprocess_generated_text,
    )
    from lm_eval.utils import (  # deferred: optional
        get_rolling_token_windows,
        make_disjoint_window,
    )

    rows, tokenizer = _Rows(model, base, batch_size), base.processor

    class Model(TemplateLM):  # type: ignore[misc]  # untyped
        """The base with an adapter."""

        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = tokenizer

        @property
        def eot_token_id(self) -> int:
            return int(tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            return self.eot_token_id if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)

        @property
        def tokenizer_name(self) -> str:
            return str(base.config.model).replace("/", "__")

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            begins = string.startswith(tokenizer.decode(self.prefix_token_id))
            added = (None if not begins else False) if add_special_tokens is None else add_special_tokens
            return list(tokenizer.encode(string, **({} if added is None else {"add_special_tokens": added})))

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            named: Any = {"add_generation_prompt": add_generation_prompt}
            named["continue_final_message"] = not add_generation_prompt
            return str(tokenizer.apply_chat_template(chat_history, tokenize=False, **named))

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            return rows.likelihoods([(context, continuation) for _, context, continuation in requests])

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            totals = []
            for request in requests:
                ids = self.tok_encode(request.args[0])
                windows = get_rolling_token_windows(ids, self.prefix_token_id, rows.longest, 1)
                pairs = [make_disjoint_window(window) for window in windows]
                totals.append(sum(total for total, _ in rows.likelihoods(pairs)))
            return totals

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            end = tokenizer.decode(self.eot_token_id)
            texts = []
            for request in requests:  # rows of one task share their settings, and a batch in `_Rows`
                text, given = request.args
                settings = normalize_gen_kwargs(given, 256)
                _refuse_sampling(settings)
                stops = handle_stop_sequences(settings.get("until"), eos=end)
                texts.append((self.tok_encode(text), tuple(stops), int(settings["max_gen_toks"])))
            made = rows.generated(texts)
            pairs = zip(made, texts, strict=True)
            return [postprocess_generated_text(text, list(stops), None) for text, (_, stops, _) in pairs]

    return Model()


def _refuse_sampling(settings: Mapping[str, Any]) -> None:
    if settings.get("do_sample"):
        fix = "use a task with do_sample: false"
        raise ArgumentError("a task of the harness samples, and answers here are greedy", where="--lm-eval", fix=fix)


class _Rows:
    """Likelihoods and texts by a model, in batches of rows of similar length.

    Args:
        model: of a task without rows.
        base: its tokenizer and settings.
        batch_size: rows per forward pass.
    """

    def __init__(self, model: TaskModel, base: Base, batch_size: int) -> None:
        self._model, self._base, self._size = model, base, batch_size
        self._collate = FAMILIES.get("causal-lm").collate(base)
        settings = base.config
        assert isinstance(settings, LanguageModel)
        backbone: Any = base.backbone
        positions = getattr(backbone.config.get_text_config(), "max_position_embeddings", None)
        self.longest = int(positions or settings.max_length)

    @torch.no_grad()
    def likelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether it is the greedy one.

        Args:
            pairs: tokens of a context and of its continuation. Too long ones lose tokens on the left.
        """
        rows = [self._row(*pair) for pair in pairs]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        for chosen in self._batches([len(row["input_ids"]) + len(row["labels"]) for row in rows]):
            batch = self._placed([rows[i] for i in chosen])
            labels = batch.pop("labels")
            logs = self._model.logits(batch, labels).log_softmax(-1)
            real = labels != IGNORED
            each = logs.gather(-1, labels.clamp_min(0)[..., None])[..., 0].masked_fill(~real, 0)
            greedy = ((logs.argmax(-1) == labels) | ~real).all(1)
            for row, total, same in zip(chosen, each.sum(1).tolist(), greedy.tolist(), strict=True):
                found[row] = (total, same)
        return found

    @torch.no_grad()
    def generated(self, prompts: Sequence[tuple[Sequence[int], tuple[str, ...], int]]) -> list[str]:
        """Return a greedy text for each prompt: its tokens, the texts that end it, and the largest number of tokens."""
        texts = [""] * len(prompts)
        for settings in dict.fromkeys((stops, most) for _, stops, most in prompts):
            alike = [i for i, (_, stops, most) in enumerate(prompts) if (stops, most) == settings]
            stops, most = settings
            self._model.readout = _Plain(self._base, _task(self._base, stops, most).config)
            rows: dict[int, dict[str, Any]] = {
                i: {"input_ids": torch.tensor(prompts[i][0][most - self.longest :]), "labels": 0} for i in alike
            }
            for picked in self._batches([len(rows[i]["input_ids"]) for i in alike]):
                chosen = [alike[place] for place in picked]
                answers, _ = self._model.predict_batch(self._placed([rows[i] for i in chosen]))
                for i, text in zip(chosen, answers, strict=True):
                    texts[i] = text
        return texts

    def _row(self, context: Sequence[int], continuation: Sequence[int]) -> dict[str, Tensor]:
        kept = [*context, *continuation][-(self.longest + 1) :]
        count = len(continuation)
        return {"input_ids": torch.tensor(kept[:-count]), "labels": torch.tensor(kept[-count:])}

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        return (order[start : start + self._size] for start in range(0, len(order), self._size))

    def _placed(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        device = next(self._model.parameters()).device
        return {name: value.to(device) for name, value in self._collate(rows).items()}
