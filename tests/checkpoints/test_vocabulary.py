"""Models with more tokens than their base: every row is kept, and the tokenizer that knows them all."""

from __future__ import annotations

import base64
import json

import pytest
import torch
from test_fuse_checkpoints import equal, naive, refuse

from folders import CONFIG, family, read, save
from tangora.checkpoints import fuse_checkpoints, fuser
from tangora.errors import FileError, FusionError

ENDS = ("model.embed_tokens.weight", "lm_head.weight")
SIZED = {**CONFIG, "vocab_size": 40}
TOLERANCE = {torch.bfloat16: 0.0, torch.float32: 1e-6}


def tokenizer(folder, added=(), first=40):
    vocabulary = {f"t{i}": i for i in range(40)}
    listed = [{"id": first + i, "content": name} for i, name in enumerate(added) if name]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": listed}))


def longer(weights, rows, seed=0):
    g = torch.Generator().manual_seed(seed)
    ends = {n: torch.randn(rows, 12, generator=g).to(weights[n].dtype) for n in ENDS if n in weights}
    return {n: torch.cat([w, ends[n]]) if n in ends else w for n, w in weights.items()}


def grown(root, **options):
    """A base of 40 tokens; m0 adds <a>, <b> and a row of padding; m1 <a>, padded to 6 rows; m2 nothing."""
    base, folders, weights, models = family(root, 3, **options)
    save(base, weights, config=SIZED)
    larger = [longer(models[0], 3, 1), longer(models[1], 6, 2), models[2]]
    for folder, tensors, shards in zip(folders, larger, (1, 2, 3), strict=True):
        save(folder, tensors, shards, {**CONFIG, "vocab_size": len(tensors[ENDS[0]])})
    for folder, added in zip([base, *folders], [(), ("<a>", "<b>"), ("<a>",), ()], strict=True):
        tokenizer(folder, added)
    return base, folders, weights, models, larger


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "ties_per_tensor", "iso_c", "dare"])
def test_rows_beyond_the_base_are_means_of_those_who_have_the_token(tmp_path, method, dtype):
    base, folders, weights, models, larger = grown(tmp_path, dtype=dtype)
    merged = fuse_checkpoints(base, folders, tmp_path / "out", method, 0.5)
    found = read(tmp_path / "out")
    for name in ENDS:
        one, other = (m[name][40:].float() for m in larger[:2])
        mean = (one[0] + other[0]) / 2
        assert found[name].shape == (46, 12)
        torch.testing.assert_close(found[name][40], mean.to(dtype), rtol=0, atol=TOLERANCE[dtype])
        assert torch.equal(found[name][41], larger[0][name][41]), "m1 has the row, but no token there"
        padding = ((one[2] + other[2]) / 2).to(dtype)
        torch.testing.assert_close(found[name][42], padding, rtol=0, atol=TOLERANCE[dtype])
        assert torch.equal(found[name][43:], larger[1][name][43:])
    if method != "dare":
        cut = {n: t[:40] if n in ENDS else t for n, t in found.items()}
        expected = naive(method, weights, models, 0.5)
        assert all(torch.allclose(cut[n].float(), expected[n].float(), atol=1e-5, rtol=1e-2) for n in cut)
        assert method in ("iso_c",) or equal(cut, expected), "rows of the base are fused as if there were no others"
    assert (merged.tensors, merged.size) == (len(weights), sum(t.nbytes for t in found.values()))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 46
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folders[0] / "tokenizer.json").read_bytes()
    assert merged.notes == [
        "the vocabulary has 46 rows; those beyond the base's are means of the models that have them; "
        "the tokenizer is m0's, with the added tokens <a>, <b>"
    ]


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_neither_threads_nor_blocks_nor_shards_nor_a_kill_change_a_bit(tmp_path, monkeypatch, method):
    base, folders, *_ = grown(tmp_path)
    fuse_checkpoints(base, folders, tmp_path / "one", method, threads=1, shard_size=700)
    expected = read(tmp_path / "one")
    for i, options in enumerate([{"threads": 3, "block": 7}, {"shard_size": 300}, {"block": 64, "threads": 2}]):
        fuse_checkpoints(base, folders, tmp_path / f"{i}", method, **options)
        assert equal(read(tmp_path / f"{i}"), expected), options
    run, left = fuser.Fuser.run, [11]

    def mortal(self, *arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        run(self, *arguments)

    monkeypatch.setattr(fuser.Fuser, "run", mortal)
    with pytest.raises(KeyboardInterrupt):
        fuse_checkpoints(base, folders, tmp_path / "out", method, threads=1, shard_size=700)
    monkeypatch.undo()
    assert fuse_checkpoints(base, folders, tmp_path / "out", method, shard_size=700).kept > 0
    assert equal(read(tmp_path / "out"), expected)


def test_another_tokenizer_begins_anew(tmp_path, monkeypatch):
    base, folders, *_, larger = grown(tmp_path)
    monkeypatch.setattr("tangora.checkpoints.merge._write_beside", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fuse_checkpoints(base, folders, tmp_path / "out")
    monkeypatch.undo()
    tokenizer(folders[1], ("<a>", "<b>", "<c>"))
    assert fuse_checkpoints(base, folders, tmp_path / "out").kept == 0
    assert torch.equal(read(tmp_path / "out")[ENDS[0]][42], larger[1][ENDS[0]][42])


def test_a_dry_run_tells_of_the_rows(tmp_path):
    base, folders, *_, larger = grown(tmp_path)
    merged = fuse_checkpoints(base, folders, tmp_path / "out", dry_run=True)
    assert merged.size == sum(2 * max(m[n].numel() for m in larger) for n in larger[0])
    assert "<a>, <b>" in merged.notes[0]
    assert not (tmp_path / "out").exists()


def test_transformers_loads_a_tied_model_with_new_tokens(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = json.dumps({"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "unk_token": "t0"}})
    words = {
        **json.loads(tokenizer),
        "model": {**json.loads(tokenizer)["model"], "vocab": {f"t{i}": i for i in range(12)}},
    }
    (tmp_path / "words.json").write_text(json.dumps(words))
    folders = []
    for i, added in enumerate([(), ("<x>", "<y>"), ("<x>",)]):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=12, tie_word_embeddings=True, **shape)).bfloat16()
        tokens = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "words.json"))
        tokens.add_tokens(list(added))
        model.resize_token_embeddings(len(tokens))
        folders.append(tmp_path / f"m{i}")
        for part in (model, tokens):
            part.save_pretrained(folders[-1])
    fuse_checkpoints(folders[0], folders[1:], tmp_path / "out", "average")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")
    rows = [AutoModelForCausalLM.from_pretrained(f).get_input_embeddings().weight for f in folders[1:]]
    weight = loaded.get_input_embeddings().weight
    assert weight is loaded.lm_head.weight
    assert weight.shape == (14, 8)
    assert tokens.convert_tokens_to_ids(["<x>", "<y>"]) == [12, 13]
    assert torch.equal(weight[12], ((rows[0][12].float() + rows[1][12].float()) / 2).bfloat16())
    assert torch.equal(weight[13], rows[0][13])
    assert torch.isfinite(loaded(tokens("t1 <x> <y>", return_tensors="pt").input_ids).logits).all()


def test_vocabularies_that_contradict_each_other(tmp_path):
    base, folders, _, models, larger = grown(tmp_path)
    tokenizer(folders[1], ("<b>",))
    refuse(tmp_path, FusionError, "one token under different ids: 41 and 40, got '<b>'", base, folders)
    tokenizer(folders[1], ("<c>",))
    refuse(tmp_path, FusionError, "different tokens under the id 40: <a> and <c>", base, folders)
    tokenizer(folders[1], ("<a>", "", "<c>"))
    refuse(tmp_path, FusionError, "no tokenizer has the added tokens of all models; m0's lacks <c>", base, folders)
    (folders[0] / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"t0": 1}}}))
    refuse(tmp_path, FusionError, "another id for one of its tokens", base, folders)
    (folders[0] / "tokenizer.json").write_text(json.dumps({"model": {"vocab": 3}}))
    refuse(tmp_path, FileError, "no vocabulary", base, folders)
    (folders[0] / "tokenizer.json").unlink()
    refuse(tmp_path, FusionError, "no tokenizer to compare", base, folders)
    save(folders[0], {**larger[0], "lm_head.weight": models[0]["lm_head.weight"]}, config=SIZED)
    refuse(tmp_path, FusionError, r"vocabularies of different lengths, got \[40, 43\]", base, folders[:1])


def test_a_row_that_is_not_finite(tmp_path):
    base, folders, *_, larger = grown(tmp_path)
    larger[1]["lm_head.weight"][44, 3] = float("nan")
    save(folders[1], larger[1], 2)
    refuse(tmp_path, FileError, "a weight is NaN at lm_head.weight in .*m1", base, folders, method="ties")


def test_only_vocabularies_may_grow(tmp_path):
    weights = {"model.position_embeddings.weight": torch.zeros(4, 2)}
    base = save(tmp_path / "base", weights)
    model = save(tmp_path / "m", {n: torch.zeros(6, 2) for n in weights})
    refuse(tmp_path, FusionError, "the shapes differ", base, [model])


@pytest.mark.parametrize("kind", ["tokenizer", "vocab"])
def test_tokens_in_rows_that_the_base_had_already(tmp_path, kind):
    base, folders, _, _ = family(tmp_path, 2)
    for folder, added in zip([base, *folders], [(), ("<a>",), ("<b>",)], strict=True):
        tokenizer(folder, added, first=39)
        if kind == "vocab":
            saved = json.loads((folder / "tokenizer.json").read_text())
            (folder / "vocab.json").write_text(json.dumps(saved["model"]["vocab"]))
            (folder / "added_tokens.json").write_text(
                json.dumps({t["content"]: t["id"] for t in saved["added_tokens"]})
            )
            (folder / "tokenizer.json").unlink()
    name = "tokenizer.json" if kind == "tokenizer" else "added_tokens.json"
    one = fuse_checkpoints(base, folders[:1], tmp_path / "one")
    assert one.notes == ["the tokenizer is m0's, with the added tokens <a>"]
    assert (tmp_path / "one" / name).read_bytes() == (folders[0] / name).read_bytes()
    both = fuse_checkpoints(base, folders, tmp_path / "both")
    assert both.notes == ["the tokenizer is the base's, which lacks tokens of some models: <a>, <b>"]
    assert (tmp_path / "both" / name).read_bytes() == (base / name).read_bytes()
    (folders[0] / name).write_bytes((base / name).read_bytes())
    assert fuse_checkpoints(base, folders[:1], tmp_path / "none").notes == []


def pieces(names):
    """A SentencePiece model: messages with the piece as field 1 and its score as field 2."""
    message = b""
    for name in names:
        piece = b"\x0a" + bytes([len(name)]) + name.encode() + b"\x15" + bytes(4)
        message += b"\x0a" + bytes([len(piece)]) + piece
    return message + b"\x12\x02\x08\x01"


def tekken(names):
    """Two special tokens, then the others by rank."""
    listed = [{"rank": i, "token_bytes": base64.b64encode(name.encode()).decode()} for i, name in enumerate(names)]
    special = [{"rank": i, "token_str": f"<{i}>"} for i in range(2)]
    config = {"default_num_special_tokens": 2, "default_vocab_size": len(names) + 2}
    return json.dumps({"config": config, "vocab": listed, "special_tokens": special}).encode()


WRITERS = {
    "tokenizer.json": lambda names: json.dumps({"model": {"vocab": {n: i for i, n in enumerate(names)}}}).encode(),
    "vocab.json": lambda names: json.dumps({name: i for i, name in enumerate(names)}).encode(),
    "vocab.txt": lambda names: "\n".join(names).encode(),
    "tokenizer.model": pieces,
    "spiece.model": pieces,
    "tekken.json": tekken,
}
NAMES = [f"t{i}" for i in range(38)]


def with_files(root, name, *lists):
    """A base and models of one length, with a tokenizer each; None for a folder without one."""
    base, folders, _, _ = family(root, len(lists) - 1)
    for folder, names in zip([base, *folders], lists, strict=True):
        if names is not None:
            (folder / name).write_bytes(WRITERS[name](names))
    return base, folders


@pytest.mark.parametrize("name", WRITERS)
def test_tokens_under_other_ids_are_refused_in_every_file(tmp_path, name):
    turned = [*NAMES[:20], *NAMES[:19:-1]]
    base, folders = with_files(tmp_path, name, NAMES, NAMES, turned)
    refuse(tmp_path, FusionError, "18 tokens have other ids in m1 than in base", base, folders)
    assert fuse_checkpoints(base, folders[:1], tmp_path / "same").notes == []


def test_the_models_are_compared_if_the_base_has_no_tokenizer(tmp_path):
    base, folders = with_files(tmp_path, "tokenizer.json", None, NAMES, [NAMES[1], NAMES[0], *NAMES[2:]])
    refuse(tmp_path, FusionError, "2 tokens have other ids in m1 than in m0", base, folders)
    (folders[1] / "tokenizer.json").unlink()
    notes = fuse_checkpoints(base, folders, tmp_path / "out").notes
    assert notes == ["of the models' own files, left out or as in the base: tokenizer.json"]


def test_renamed_tokens_and_other_kinds_of_files_are_noted(tmp_path):
    base, folders = with_files(tmp_path, "vocab.json", NAMES, NAMES, [*NAMES[:36], "<a>", "<b>"])
    first, second = fuse_checkpoints(base, folders, tmp_path / "renamed").notes
    assert first == "m1 has other tokens under ids of the base: <a> instead of t36, <b> instead of t37"
    assert second == "the tokenizer is the base's, which lacks tokens of some models: <a>, <b>"
    base, folders = with_files(tmp_path / "other", "tokenizer.model", NAMES, None)
    (folders[0] / "vocab.json").write_bytes(WRITERS["vocab.json"](NAMES[::-1]))
    notes = fuse_checkpoints(base, folders, tmp_path / "kinds").notes
    assert notes == ["tokenizer.model of base and vocab.json of m0 were not compared"]


@pytest.mark.parametrize("content", [b"\xff" * 12, b"\x0a\x7f\x00", b"\x0b", b"\x0a\x03\x0a\x09a", b"\x0a"])
def test_a_damaged_sentencepiece_model(tmp_path, content):
    base, folders = with_files(tmp_path, "tokenizer.model", NAMES, NAMES)
    (folders[0] / "tokenizer.model").write_bytes(content)
    refuse(tmp_path, FileError, "SentencePiece model", base, folders)


@pytest.mark.parametrize(
    "content", ['{"vocab": 3}', '{"vocab": [{}]}', '{"vocab": [{"rank": "x", "token_bytes": "YQ=="}]}']
)
def test_a_damaged_tekken_file(tmp_path, content):
    base, folders = with_files(tmp_path, "tekken.json", NAMES, NAMES)
    (folders[0] / "tekken.json").write_text(content)
    refuse(tmp_path, FileError, "tekken.json", base, folders)


def labelled(*labels):
    return {**CONFIG, "id2label": {str(i): label for i, label in enumerate(labels)}}


def test_labels_in_another_order_are_refused(tmp_path):
    base, folders, weights, models = family(tmp_path, 2)
    save(base, weights, config=labelled("LABEL_0", "LABEL_1"))
    save(folders[0], models[0], config=labelled("negative", "positive"))
    save(folders[1], models[1], config=labelled("Positive", "Negative"))
    refuse(tmp_path, FusionError, "the labels of m1 are in another order than those of m0", base, folders)
    save(folders[1], models[1], config=labelled("no", "yes"))
    notes = fuse_checkpoints(base, folders, tmp_path / "out").notes
    assert notes == ["m0 and m1 have other labels; the configuration is the base's"]


def test_a_head_beside_the_embedding_that_it_is_said_to_be(tmp_path):
    tied = {**CONFIG, "tie_word_embeddings": True}
    base, folders, weights, models = family(tmp_path, 1)
    for folder, tensors in ((base, weights), (folders[0], models[0])):
        save(folder, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, config=tied)
    fuse_checkpoints(base, folders, tmp_path / "equal")
    save(folders[0], models[0])
    refuse(tmp_path, FusionError, "m0 has a separate output head, the base's is tied", base, folders)
    save(folders[0], models[0], config=tied)
    words = "m0 ties its output head to model.embed_tokens.weight, but has another tensor for it"
    refuse(tmp_path, FusionError, words, base, folders)
