"""The family `causal-lm`: rows, tokens, batches, answers. Logits of padded batches equal those of single rows."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import tangora
import tiny
from tangora.errors import DataError, ModelError, RecipeError
from tangora.support.seams import FAMILIES
from tangora.tasks.batches import IGNORED
from tangora.tasks.language.readout import trimmed
from tangora.tasks.language.tokens import Vocabulary, vocabulary
from tangora.tasks.model import TaskModel, predict
from tangora.tasks.values import evaluating
from tangora.testing import check_family

FORMS = {
    "prompt": {},
    "references": {"references": "references"},
    "chat": {"chat": True, "system": "count"},
    "messages": {"messages": "messages"},
    "turns": {"messages": "messages", "turns": "all"},
    "text": {"text": "text", "metric": "perplexity"},
    "choices": {"choices": "choices"},
    "all": {"loss": "all"},
    "all of a text": {"text": "text", "metric": "perplexity", "loss": "all"},
}
ROUNDING = 1e-4  # float32, two layers of width 32: about 1e3 additions of terms of size 1


@pytest.fixture(scope="module")
def base(tiny_llama):
    return tangora.load_base(tiny_llama, family="causal-lm", max_length=64, max_new_tokens=12)


@pytest.fixture(scope="module")
def task_of(base, sum_data):
    files = {split: str(sum_data / f"{split}.jsonl") for split in ("train", "test")}
    return lambda **settings: tangora.load_task("sums", base, files, **settings)


def rows_file(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"train": str(path), "test": str(folder / "test.jsonl")}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_rows_keeps_the_promises_of_a_family(form, tiny_llama, sum_data):
    files = {split: str(sum_data / f"{split}.jsonl") for split in ("train", "test")}
    settings = {"model": str(tiny_llama), "max_new_tokens": 12, "max_length": 64}
    check_family(FAMILIES.get("causal-lm"), settings, {"name": "sums", "source": {"jsonl": files}, **FORMS[form]})


def test_tokens_of_a_prompt_and_its_completion(task_of):
    """By hand: a byte is a token; the completion begins with the separator and ends with the end token."""
    tokenizer = tiny.decoder_tokenizer()
    split = task_of().splits["test"]
    assert tokenizer.decode(split.inputs["input_ids"][0]) == "5+0==="[: len(split.inputs["input_ids"][0])]
    assert tokenizer.decode(split.inputs["labels"][0]) == " 5<end>"
    chat = task_of(chat=True, system="count").splits["test"]
    assert tokenizer.decode(chat.inputs["input_ids"][0]) == "<system> count<end>\n<user> 5+0==<end>\n<assistant> "
    assert tokenizer.decode(chat.inputs["labels"][0]) == "5<end>"


def test_turns_of_a_conversation_are_learned_as_the_settings_say(task_of):
    tokenizer = tiny.decoder_tokenizer()
    last, every = (task_of(messages="messages", turns=turns).splits["test"] for turns in ("last", "all"))
    assert "earlier" not in last.inputs
    for ids, earlier, whole in zip(
        every.inputs["input_ids"], every.inputs["earlier"], last.inputs["input_ids"], strict=True
    ):
        assert torch.equal(ids, whole), "the pieces of a chat have the tokens of the whole"
        assert torch.equal(ids[earlier != IGNORED], earlier[earlier != IGNORED])
    assert tokenizer.decode([i for i in every.inputs["earlier"][0].tolist() if i != IGNORED]) == "5<end>"
    assert all(torch.equal(a, b) for a, b in zip(every.inputs["labels"], last.inputs["labels"], strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_has_the_logits_of_single_rows_without_padding(form, base, task_of):
    """Against the model itself: one row, no padding, all logits."""
    task = task_of(**FORMS[form])
    model, split = TaskModel(base.backbone, task, base), task.splits["test"]
    batch = model.collator([split.dataset()[i] for i in range(len(split))])
    labels = batch.pop("labels")
    with evaluating(model), torch.no_grad():
        logits = model.logits(batch, labels)
        losses = model.readout.losses(logits, labels)
        for row in range(len(split)):
            ids = torch.cat([split.inputs["input_ids"][row], split.inputs["labels"][row]])
            targets = torch.cat(
                [split.inputs["earlier"][row], split.inputs["labels"][row]]
                if "earlier" in split.inputs
                else [torch.full_like(split.inputs["input_ids"][row], IGNORED), split.inputs["labels"][row]]
            )
            alone = base.backbone(input_ids=ids[None]).logits[0, :-1]
            places = (targets[1:] != IGNORED).nonzero()[:, 0]
            assert torch.allclose(logits[row][labels[row] != IGNORED], alone[places], atol=ROUNDING)
            expected = torch.nn.functional.cross_entropy(alone[places], targets[1:][places])
            assert losses[row].item() == pytest.approx(expected.item(), abs=ROUNDING)


def test_answers_are_those_of_transformers(base, task_of, tiny_llama):
    """`generate` of transformers on single prompts, up to the end token, is the reference."""
    task = task_of()
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    answers = predict(TaskModel(base.backbone, task, base), task.splits["test"], 5).values
    for row, ids in enumerate(task.splits["test"].inputs["input_ids"]):
        made = reference.generate(
            ids[None], attention_mask=torch.ones_like(ids[None]), max_new_tokens=12, do_sample=False
        )
        assert answers[row] == base.processor.decode(made[0, len(ids) :], skip_special_tokens=True).strip()
    assert len(set(answers)) > 1


def test_a_model_without_a_cache_reads_all_tokens_again(base, task_of, monkeypatch):
    task = task_of()
    cached = predict(TaskModel(base.backbone, task, base), task.splits["test"], 5).values
    forward = base.backbone.forward

    def without(*args, **named):
        output = forward(*args, **named | {"use_cache": False, "past_key_values": None})
        assert output.past_key_values is None
        return output

    monkeypatch.setattr(base.backbone, "forward", without)
    monkeypatch.setattr("tangora.tasks.language.greedy.takes", lambda model, name: True)
    monkeypatch.setattr("tangora.tasks.language.logits.takes", lambda model, name: True)
    assert predict(TaskModel(base.backbone, task, base), task.splits["test"], 5).values == cached


def test_a_tokenizer_that_puts_a_space_in_front_of_texts_puts_none_in_front_of_an_answer():
    """As those of SentencePiece: the completion has the tokens that it has behind its prompt."""
    pieces = ["<unk>", "</s>", "▁", "▁x", "▁a", "▁5", "5", "x", "a"]
    core = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    words = Vocabulary(tokenizer, (1,), 64)
    assert tokenizer.convert_ids_to_tokens(words.start("a")) == ["▁a"]
    assert tokenizer.convert_ids_to_tokens(words.more(" 5")) == ["▁5"]
    assert [*words.start("a"), *words.more(" 5")] == words.start("a 5")


def test_rows_that_have_ended_leave_the_batch(base, task_of):
    """A token that some rows generate early counts as an end: the others go on as alone."""
    task = task_of()
    model = TaskModel(base.backbone, task, base)
    free = predict(model, task.splits["test"], 12).values
    ends = {text[3] for text in free if len(text) > 3}
    stops = task_of(stop=sorted(ends)[:1])
    cut = predict(TaskModel(base.backbone, stops, base), stops.splits["test"], 12).values
    assert cut == [trimmed(text, sorted(ends)[:1]) for text in free]
    assert {len(text) for text in cut} != {len(text) for text in free}


def test_the_likeliest_choice_is_that_of_single_continuations(base, task_of):
    """Each choice alone behind its prompt, without padding; the end token does not count."""
    for normalize in ("tokens", "characters", "none"):
        task = task_of(choices="choices", normalize=normalize)
        answers = predict(TaskModel(base.backbone, task, base), task.splits["test"], 5).values
        rows = task.splits["test"]
        for row, ids in enumerate(rows.inputs["input_ids"]):
            offered = tiny._sum(40 + row)["choices"]
            scores = []
            for choice in offered:
                tail = torch.tensor(base.processor(" " + choice, add_special_tokens=False)["input_ids"])
                with torch.no_grad():
                    logits = base.backbone(input_ids=torch.cat([ids, tail])[None]).logits[0, len(ids) - 1 : -1]
                total = logits.log_softmax(-1).gather(1, tail[:, None]).sum().item()
                scores.append(total / {"tokens": len(tail), "characters": len(choice), "none": 1}[normalize])
            assert answers[row] == offered[scores.index(max(scores))]


def test_a_likelihood_is_the_total_over_the_tokens_of_a_text(base, task_of):
    task = task_of(text="text", metric="perplexity")
    values = predict(TaskModel(base.backbone, task, base), task.splits["test"], 5).values
    for row, (total, count) in enumerate(values):
        text = tiny._sum(40 + row)["text"]
        ids = torch.tensor([*base.processor(text)["input_ids"], 1])
        with torch.no_grad():
            logits = base.backbone(input_ids=ids[None]).logits[0, :-1]
        expected = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
        assert (total, count) == (pytest.approx(expected, abs=20 * ROUNDING), len(ids) - 1)
        assert task.splits["test"].targets[row] == len(text.encode())


def test_stop_texts_count_from_the_first_character_that_is_no_white_space():
    assert trimmed("\n\n a b\nc", ["\n"]) == "a b"
    assert trimmed("  a\nb ", []) == "a\nb"
    assert trimmed("a END b ; c", [";", " END"]) == "a"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"messages": "messages", "text": "text"}, "at most one of"),
        ({"messages": "messages", "prompt": "{a}"}, "leave them out"),
        ({"text": "text", "chat": True, "metric": "perplexity"}, "a plain text has no chat"),
        ({"system": "x"}, "needs chat: true"),
        ({"turns": "all"}, "only rows with messages"),
        ({"chat": True, "truncation": "right"}, "drop the place where an answer begins"),
        ({"chat_arguments": {"a": 1}}, "need chat: true"),
        ({"stop": [""]}, "must not be empty"),
        ({"choices": ["a", "a"]}, "at least two, all different"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message, task_of):
    with pytest.raises((RecipeError, tangora.TangoraError), match=message):
        task_of(**settings)


ROW = {"prompt": "1+1=", "completion": "2"}
TALK = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([ROW, {"prompt": " ", "completion": "2"}], {}, "a prompt is empty.*row [13]"),
        ([ROW, {"prompt": "1", "completion": " "}], {}, "a row has no answer.*row [13]"),
        ([ROW, {"prompt": "1" * 70, "completion": "2"}], {}, "a row is longer than 64 tokens.*row [13].*truncation"),
        (
            [ROW, {"prompt": "1", "completion": "2" * 20}],
            {},
            "an answer has more than 12 tokens.*row [13].*max_new_tokens",
        ),
        ([ROW | {"messages": "hello"}], {"messages": "messages"}, "no list of messages.*row 0"),
        ([{"messages": [{"role": "bot", "content": "1"}, *TALK]}], {"messages": "messages"}, "role of a message.*bot"),
        ([{"messages": TALK[:1]}], {"messages": "messages"}, "a row has no answer.*row 0"),
        ([{"messages": TALK[1:]}], {"messages": "messages"}, "no message of the user"),
        ([ROW | {"c": ["2"]}], {"choices": "c"}, "choices of a row cannot be used.*row 0"),
        ([ROW | {"c": ["2", "3"], "label": 2}], {"choices": "c"}, "a label names no choice.*row 0"),
        ([ROW | {"c": ["3", "4"]}], {"choices": "c"}, "not among the choices.*row 0"),
        ([ROW | {"r": [""]}], {"references": "r"}, "a reference is empty.*row 0"),
        ([ROW | {"t": ""}], {"text": "t", "metric": "perplexity"}, "missing, empty or not a text.*row 0"),
        ([ROW], {"prompt": "{promt}"}, "unknown column in prompt.*prompt"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_with_their_number(rows, settings, message, base, tmp_path):
    files = {}
    for split in ("train", "test"):
        path = tmp_path / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *rows][: 2 * len(rows)]))
        files[split] = str(path)
    with pytest.raises(DataError, match="(?s)" + message):
        tangora.load_task("sums", base, files, **settings)


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_drops_tokens_of_the_prompt_only(side, base, tmp_path):
    prompt = "a" * 40 + "b" * 40
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text((json.dumps({"prompt": prompt, "completion": "2"}) + "\n") * 2)
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    rows = tangora.load_task("sums", base, files, truncation=side).splits["test"]
    kept = 64 - 3  # " 2<end>"
    text = base.processor.decode(rows.inputs["input_ids"][0])
    assert text == (prompt[-kept:] if side == "left" else prompt[:kept])
    assert len(rows.inputs["labels"][0]) == 3


def test_arguments_of_the_template_reach_it(base, task_of, monkeypatch):
    monkeypatch.setattr(
        base.processor,
        "chat_template",
        tiny.CHAT.replace("<assistant> {% endif", "<assistant> {{ end_with }}{% endif").replace(
            "<{{ m['role'] }}> ", "<{{ m['role'] }}> {% if m['role'] == 'assistant' %}{{ end_with }}{% endif %}"
        ),
    )
    rows = task_of(chat=True, chat_arguments={"end_with": "now "}).splits["test"]
    assert base.processor.decode(rows.inputs["input_ids"][0]).endswith("<assistant> now ")
    assert base.processor.decode(rows.inputs["labels"][0]) == "5<end>"


def test_a_tokenizer_without_a_template_cannot_chat(base, task_of, monkeypatch):
    monkeypatch.setattr(base.processor, "chat_template", None)
    with pytest.raises(ModelError, match="no chat template"):
        task_of(chat=True)


def test_a_row_that_the_template_refuses_is_named(base, tmp_path, monkeypatch):
    monkeypatch.setattr(
        base.processor,
        "chat_template",
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + tiny.CHAT,
    )
    turns = [{"role": "user", "content": "2+3="}, {"role": "assistant", "content": "5"}]
    rows = [{"messages": turns}] * 2 + [{"messages": [{"role": "system", "content": "Add."}, *turns]}]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    with pytest.raises(DataError, match=r"no system role\).*column messages, row 2 \(line 3\)"):
        tangora.load_task("chats", base, files, messages="messages")


def test_a_template_that_changes_a_question_is_refused(base, task_of, monkeypatch):
    changed = tiny.CHAT.replace("<assistant> {% endif", "<assistant> <think> {% endif")
    monkeypatch.setattr(base.processor, "chat_template", changed)
    with pytest.raises(ModelError, match="does not begin an answer"):
        task_of(chat=True)


def test_generated_answers_become_the_tokens_that_were_generated(base, task_of):
    """What `labels_of` makes of an answer decodes to it, with one end token, in plain form and in a chat."""
    for settings in ({}, {"chat": True}):
        task = task_of(**settings)
        readout = TaskModel(base.backbone, task, base).readout
        for ids in readout.labels_of(["12", "x y"]):
            assert ids[-1].item() == vocabulary(base, task.config).ends[0]
            assert base.processor.decode(ids[:-1]).strip() in ("12", "x y")
