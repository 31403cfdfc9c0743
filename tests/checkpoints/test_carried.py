"""The files beside the tensors of a fused checkpoint: taken over, agreed on, or listed as left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import folders
import toys
from tangora.checkpoints import Merged, fuse_checkpoints
from tangora.errors import FileError

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<end>", *(f"w{i}" for i in range(35))]


def write(folder: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def family(root: Path, base: dict[str, object], *tuned: dict[str, object]) -> tuple[Path, list[Path]]:
    origin, places, *_ = folders.family(root, len(tuned))
    return write(origin, base), [write(place, files) for place, files in zip(places, tuned, strict=True)]


def merged(root: Path, base: Path, places: list[Path]) -> tuple[Merged, Path]:
    return fuse_checkpoints(base, places, root / "out", weights=0.5), root / "out"


def notes_of(result: Merged) -> str:
    return "\n".join(result.notes)


CARRIED = [
    *("modeling_own.py", "configuration_own.py", "spm.model", "tekken.json", "vocab.txt", "merges.txt", "source.spm"),
    *("qwen.tiktoken", "chat_template.jinja", "additional_chat_templates/tools.jinja", "preprocessor_config.json"),
    *("generation_config.json", "LICENSE", "USE_POLICY.md", "modules.json", "1_Pooling/config.json"),
    *("config_sentence_transformers.json", "sentence_bert_config.json", "custom_generate/generate.py"),
]
LEFT = ["pytorch_model.bin", "optimizer.pt", "trainer_state.json", "onnx/model.onnx", "odd.xyz", "checkpoint-5/a.json"]
CONTENT = {"modules.json": [{"path": ""}, {"path": "1_Pooling"}], "vocab.txt": "a\nb", "tekken.json": {}}


@pytest.mark.parametrize("name", CARRIED)
def test_files_of_the_base_are_taken_over(tmp_path, name):
    content = CONTENT.get(name, {} if name.endswith(".json") else "text")
    files = {name: content, "modules.json": CONTENT["modules.json"]}
    base, places = family(tmp_path, files, {}, {})
    _, out = merged(tmp_path, base, places)
    assert (out / name).read_bytes() == (base / name).read_bytes()


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_out_is_listed(tmp_path, name):
    base, places = family(tmp_path, {name: "x"}, {}, {})
    result, out = merged(tmp_path, base, places)
    assert not (out / name).exists()
    assert f"left out of the base's files: {name.partition('/')[0]}" in notes_of(result)
    assert json.loads((out / "tangora_fusion.json").read_text())["notes"] == result.notes


def test_weights_of_further_modules_are_taken_over(tmp_path):
    base, places = family(
        tmp_path, {"modules.json": [{"path": ""}, {"path": "2_Dense"}], "2_Dense/config.json": {}}, {}
    )
    save_file({"w": torch.ones(2)}, base / "2_Dense" / "model.safetensors")
    _, out = merged(tmp_path, base, places)
    assert (out / "2_Dense" / "model.safetensors").read_bytes() == (base / "2_Dense" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("path", ["..", "../elsewhere", "/etc", "a/b"])
def test_modules_lie_inside(tmp_path, path):
    base, places = family(tmp_path, {"modules.json": [{"path": path}]}, {})
    write(tmp_path, {"elsewhere/config.json": {}})
    _, out = merged(tmp_path, base, places)
    assert not (tmp_path / "elsewhere" / "modules.json").exists()
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == []


def test_links_that_lead_out_are_not_followed(tmp_path):
    base, places = family(tmp_path, {}, {})
    (tmp_path / "secret.txt").write_text("secret")
    (base / "vocab.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(FileError, match="leads out"):
        merged(tmp_path, base, places)


def test_code_that_the_base_lacks_is_named(tmp_path):
    base, places = family(tmp_path, {"modeling_own.py": ""}, {}, {})
    table = {"AutoModel": "modeling_own.Own", "AutoConfig": "configuration_own.Own", "AutoTokenizer": "org/x--tok.T"}
    (base / "config.json").write_text(json.dumps({**folders.CONFIG, "auto_map": table}))
    result, _ = merged(tmp_path, base, places)
    assert [note for note in result.notes if "auto_map" in note] == [
        "configuration_own.py is named by auto_map, but is not in the base"
    ]


def test_a_file_of_all_models(tmp_path):
    same, other = {"preprocessor_config.json": {"size": 3}}, {"preprocessor_config.json": {"size": 4}}
    base, places = family(tmp_path / "a", {}, same, same)
    result, out = merged(tmp_path / "a", base, places)
    assert json.loads((out / "preprocessor_config.json").read_text()) == {"size": 3}
    assert "preprocessor_config.json is the one that all models have" in notes_of(result)
    base, places = family(tmp_path / "b", {}, same, other)
    result, out = merged(tmp_path / "b", base, places)
    assert not (out / "preprocessor_config.json").exists()
    assert "left out or as in the base: preprocessor_config.json" in notes_of(result)


def tokenizer(template: str | None = None, ends: str = "</s>") -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", eos_token=ends)
    made.chat_template = template
    return made


GENERATION = {"eos_token_id": 2, "transformers_version": "5"}


def chat_family(root: Path, templates: list[str | None], ends: list[object]) -> tuple[Path, list[Path]]:
    base, places = family(root, {"generation_config.json": GENERATION}, *({} for _ in templates))
    tokenizer().save_pretrained(base)
    for place, template, end in zip(places, templates, ends, strict=True):
        tokenizer(template).save_pretrained(place)
        write(place, {"generation_config.json": {**GENERATION, "eos_token_id": end}})
    return base, places


def test_a_chat_template_and_end_tokens_that_all_models_have(tmp_path):
    base, places = chat_family(tmp_path, [TEMPLATE, TEMPLATE], [[2, 4], [2, 4]])
    result, out = merged(tmp_path, base, places)
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [2, 4]
    assert "the chat template is the one that all models have" in notes_of(result)
    assert "generation_config.json: eos_token_id as in all models" in notes_of(result)


@pytest.mark.parametrize(("templates", "ends"), [([TEMPLATE, "other"], [[2, 4], 4]), ([TEMPLATE, None], [[2, 4], 2])])
def test_others_are_listed(tmp_path, templates, ends):
    base, places = chat_family(tmp_path, templates, ends)
    result, out = merged(tmp_path, base, places)
    assert AutoTokenizer.from_pretrained(out).chat_template is None
    assert json.loads((out / "generation_config.json").read_text()) == GENERATION
    assert "the chat template of m0" in notes_of(result)
    assert "generation_config.json: eos_token_id as in the base" in notes_of(result)


def test_an_end_token_must_be_known(tmp_path):
    for ends, taken in (("<end>", True), ("<unheard>", False)):
        root = tmp_path / ends.strip("<>")
        base, places = family(root, {}, {}, {})
        tokenizer().save_pretrained(base)
        stated = json.loads((base / "tokenizer_config.json").read_text())
        for place in places:
            tokenizer().save_pretrained(place)
            write(place, {"tokenizer_config.json": {**stated, "eos_token": ends}})
        result, out = merged(root, base, places)
        assert (json.loads((out / "tokenizer_config.json").read_text())["eos_token"] == ends) is taken
        assert ("eos_token as in all models" in notes_of(result)) is taken


def test_a_base_without_tokenizer(tmp_path):
    base, places = family(tmp_path, {}, {}, {})
    for place in places:
        tokenizer(TEMPLATE).save_pretrained(place)
    result, out = merged(tmp_path, base, places)
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE
    assert "the tokenizer is the one that all models have" in notes_of(result)


def test_a_template_in_the_configuration(tmp_path):
    base, places = family(tmp_path, {}, {}, {})
    tokenizer("the base's").save_pretrained(base)
    for place in places:
        tokenizer().save_pretrained(place)
        stated = json.loads((place / "tokenizer_config.json").read_text())
        write(place, {"tokenizer_config.json": {**stated, "chat_template": TEMPLATE}})
    _, out = merged(tmp_path, base, places)
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE


def test_a_template_beside_all_adapters(tmp_path):
    weights = {f"{site}.weight": torch.zeros(update.shape) for site, update in toys.lora(1).updates.items()}
    base = folders.save(tmp_path / "base", weights)
    tokenizer().save_pretrained(base)
    places = [tmp_path / "a", tmp_path / "b"]
    for seed, place in enumerate(places):
        toys.lora(seed).save(place)
        tokenizer(TEMPLATE).save_pretrained(place)
    _, out = merged(tmp_path, base, places)
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE


def test_the_name_of_a_weights_file_is_not_taken_over(tmp_path):
    base, places = family(tmp_path, {}, {})
    named = {**folders.CONFIG, "transformers_weights": "model.safetensors"}
    (base / "config.json").write_text(json.dumps(named))
    _, out = merged(tmp_path, base, places)
    assert "transformers_weights" not in json.loads((out / "config.json").read_text())
