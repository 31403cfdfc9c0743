"""Tiny random checkpoints of the real classes, and tiny data with labels that can be learned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

_WORDS = "red green blue one two three four a photo of this that is good bad great poor sky grass fire sea yes no"
WORDS = _WORDS.split()
COLORS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}


def clip(folder: Path) -> Path:
    """CLIPModel: vision 2 layers of width 32 on 32-pixel images, text 2 layers, projection 16."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    special = ["<pad>", "<start>", "<unk>", "<end>"]
    ids = {word: i for i, word in enumerate([*special, *WORDS])}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(word, ids[word]) for word in ("<start>", "<end>")]
    core.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=16,
    )
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**shape, "vocab_size": len(ids), "max_position_embeddings": 16, "projection_dim": 16}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}
    vision = {**shape, "image_size": 32, "patch_size": 8, "projection_dim": 16}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    _save(CLIPModel, config, folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def bert(folder: Path) -> Path:
    """BertModel: 2 layers of width 32, WordPiece."""
    vocabulary = _vocabulary()
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    _save(BertModel, config, folder)
    return pieces(folder)


def tuned(base: Path, folder: Path, scale: float = 0.01, seed: int = 1) -> Path:
    """A checkpoint with other values of everything, as after a full fine-tuning; its other files are the base's."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(folder / "model.safetensors")
    for name, value in weights.items():
        weights[name] = value + (scale * torch.randn(value.shape, generator=generator)).to(value.dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def pieces(folder: Path) -> Path:
    """The tokenizer of `bert`, for other models of text; its padding is 0."""
    folder.mkdir(parents=True, exist_ok=True)
    BertTokenizerFast(vocab=_vocabulary(), do_lower_case=True).save_pretrained(folder)
    return folder


def vit(folder: Path) -> Path:
    """ViTModel: 2 layers of width 16 on 16-pixel images."""
    from transformers import ViTConfig, ViTModel

    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    _save(ViTModel, ViTConfig(**size, image_size=16, patch_size=8), folder)
    return shrinker(folder)


def swin(folder: Path) -> Path:
    """SwinModel: 3 stages of width 8, 16 and 32 with one block each (two in the first), on 16-pixel images."""
    from transformers import SwinConfig, SwinModel

    shape = {"embed_dim": 8, "depths": [2, 1, 1], "num_heads": [1, 2, 2], "window_size": 2, "mlp_ratio": 2.0}
    _save(SwinModel, SwinConfig(**shape, image_size=16, patch_size=2, drop_path_rate=0.0), folder)
    return shrinker(folder)


def scenes(folder: Path, train: int = 24, test: int = 8) -> Path:
    """``{train,test}.npz``: images of 20 pixels with a colored square, its class, mark and distance for every pixel.

    ``{train,test}.csv`` names the same as files in ``files/``: image, classes (255 does not count), marks (0 or 255).
    """
    import csv

    from PIL import Image

    (folder / "files").mkdir(parents=True, exist_ok=True)
    for split, n in (("train", train), ("test", test)):
        draw = np.random.default_rng(len(split))
        images, classes = draw.integers(90, 160, (n, 20, 20, 3)), np.zeros((n, 20, 20))
        for i in range(n):
            top, left, color = *draw.integers(0, 12, 2), i % len(COLORS)
            images[i, top : top + 8, left : left + 8] = list(COLORS.values())[color]
            classes[i, top : top + 8, left : left + 8] = 1 + color
        classes[:, 0, 0] = 255
        arrays = {"image": images, "classes": classes, "marks": (classes > 0) & (classes < 255)}
        arrays = {name: array.astype(np.uint8) for name, array in arrays.items()}
        numbers = np.where(classes < 255, classes / 2, np.nan).astype(np.float32)
        np.savez(folder / f"{split}.npz", **arrays, numbers=numbers)
        rows = []
        for i in range(n):
            names = {name: f"files/{split}{i:02}-{name}.png" for name in arrays}
            for name, array in arrays.items():
                Image.fromarray(array[i] * (255 if name == "marks" else 1)).save(folder / names[name])
            rows.append(names)
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(arrays))
            writer.writeheader()
            writer.writerows(rows)
    return folder


def resnet(folder: Path) -> Path:
    """ResNetModel: 2 stages of width 8 and 12, whose batch normalization has statistics of its own."""
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNetModel(config)
        with torch.no_grad():  # as after pretraining
            for _ in range(3):
                model.train()(torch.randn(8, 3, 16, 16))
        model.save_pretrained(folder)
    return shrinker(folder)


def several(folder: Path, train: int = 36, test: int = 12) -> Path:
    """``{train,test}.jsonl``: text, colors (list), red, green, blue (0 or 1), pair, same, count, tokens and tags."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in (("train", train), ("test", test)):
        draw = np.random.default_rng(len(split))
        rows = []
        for i in range(n):
            named = [color for j, color in enumerate(COLORS) if (i + 1) >> j & 1]
            words = [*draw.choice(["this", "that", "photo", "of"], 2).tolist(), *named, "zero"]
            row = {"text": " ".join(words), "colors": named, "count": len(named) / 2, "tokens": words}
            row |= {color: int(color in named) for color in COLORS}
            row |= {"pair": " ".join(named if i % 2 else ["yes"]) or "no", "same": "yes" if i % 2 and named else "no"}
            row |= {"tags": [f"B-{word}" if word in COLORS else "O" for word in words]}
            rows.append(row)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def desk(folder: Path, train: int = 32, test: int = 12) -> Path:
    """``{topic,themes,stars}/{train,test}.csv`` of classes, labels and numbers, and ``words/{train,test}.jsonl``."""
    import csv

    for split, n in (("train", train), ("test", test)):
        draw = np.random.default_rng(len(split))
        fill = [draw.choice(["a", "this", "that", "photo", "is", "of"], 3).tolist() for _ in range(n)]
        rows: dict[str, list[tuple[str, str]]] = {"topic": [], "themes": [], "stars": []}
        for i, words in enumerate(fill):
            rows["topic"].append((" ".join([*words, ["sky", "fire"][i % 2]]), ["weather", "fire"][i % 2]))
            named = [word for j, word in enumerate(["fire", "sky", "sea"]) if (i + 1) >> j & 1]
            rows["themes"].append((" ".join([*words, *named]), "|".join(named)))
            rows["stars"].append((" ".join([*words, ["bad", "good", "great"][i % 3]]), str(i % 3 + 0.5)))
        for name, listed in rows.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            with (folder / name / f"{split}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([("text", {"topic": "label"}.get(name, name)), *listed])
        (folder / "words").mkdir(exist_ok=True)
        listed = [[*words, list(COLORS)[i % 3]] for i, words in enumerate(fill)]
        tagged = [{"tokens": words, "tags": [*["O"] * (len(words) - 1), "B-color"]} for words in listed]
        (folder / "words" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tagged))
    return folder


def shrinker(folder: Path, side: int = 16) -> Path:
    """An image processor for models of images of this size."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    folder.mkdir(parents=True, exist_ok=True)
    ViTImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def _vocabulary() -> dict[str, int]:
    listed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz0123456789"]
    listed += ["##" + c for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
    return {piece: i for i, piece in enumerate(dict.fromkeys(listed))}


def t5(folder: Path) -> Path:
    """T5ForConditionalGeneration: 2 layers of width 32, a Unigram tokenizer of words and letters."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *("▁" + w for w in WORDS), *"abcdefghijklmnopqrstuvwxyz0123456789.:"]
    core = Tokenizer(
        models.Unigram([(p, -float(i > 3) - len(pieces[:i]) / 100) for i, p in enumerate(pieces)], unk_id=2)
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )
    config = T5Config(
        vocab_size=len(pieces),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    _save(T5ForConditionalGeneration, config, folder)
    tokenizer.save_pretrained(folder)
    return folder


CHAT = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def decoder_tokenizer(length: int = 64) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer without merges, with a chat template; it begins no text by itself."""
    special = ["<pad>", "<end>", "<user>", "<assistant>", "<system>"]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>", model_max_length=length
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special[2:]})
    tokenizer.chat_template = CHAT
    return tokenizer


def llama(folder: Path, length: int = 64) -> Path:
    """LlamaForCausalLM: 2 layers of width 32, grouped queries, tied embeddings, a tokenizer of bytes."""
    tokenizer = decoder_tokenizer(length)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.3,  # so that its answers differ from prompt to prompt
    )
    _save(LlamaForCausalLM, config, folder)
    tokenizer.save_pretrained(folder)
    return folder


def sums(folder: Path, train: int = 40, test: int = 12) -> Path:
    """``{train,test}.jsonl``: prompt, completion, references, messages, text, choices and label of small sums."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in (("train", train), ("test", test)):
        rows = [_sum(i + (split == "test") * train) for i in range(n)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _sum(number: int) -> dict:
    x, y = number % 7, number % 5
    prompt, answer, wrong = f"{x}+{y}=" + "=" * (number % 3), str(x + y), str(x + y + 1)
    messages = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": answer},
    ]
    choices = [answer, wrong] if number % 2 else [wrong, answer]
    return {
        "prompt": prompt,
        "completion": answer,
        "references": [answer, f"0{answer}"],
        "messages": messages,
        "text": f"{prompt} {answer}",
        "choices": choices,
        "label": choices.index(answer),
    }


def texts(folder: Path, train: int = 48, test: int = 24) -> Path:
    """``{train,test}.{parquet,csv,jsonl}`` (text, label, name, grade) ``info.json``; the color is the class."""
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    for split, n in (("train", train), ("test", test)):
        rows = datasets.Dataset.from_dict(_text_rows(n, salt=len(split)))
        rows.to_pandas().to_parquet(folder / f"{split}.parquet")
        rows.to_pandas().to_csv(folder / f"{split}.csv", index=False)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "info.json").write_text(json.dumps({"labels": list(COLORS)}))
    return folder


def images(folder: Path, train: int = 48, test: int = 24) -> Path:
    """``{train,test}.npz`` (images, labels) and folders ``{train,test}/<class>/*.png``: the color is the class."""
    from PIL import Image

    for split, n in (("train", train), ("test", test)):
        noise = np.random.default_rng(len(split)).integers(-30, 30, (n, 20, 20, 3))
        labels = np.arange(n) % len(COLORS)
        pixels = np.clip(np.array(list(COLORS.values()))[labels][:, None, None] + noise, 0, 255).astype(np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"{split}.npz", images=pixels, labels=labels.astype(np.int64))
        for i, (array, label) in enumerate(zip(pixels, labels, strict=True)):
            place = folder / split / list(COLORS)[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(place / f"{i:03}.png")
    return folder


def _text_rows(n: int, salt: int) -> dict[str, list]:
    draw = np.random.default_rng(salt)
    labels = [i % len(COLORS) for i in range(n)]
    names = [list(COLORS)[i] for i in labels]
    fill = [" ".join(draw.choice(["this", "that", "is", "a", "photo", "of"], draw.integers(1, 6))) for _ in range(n)]
    return {
        "text": [f"{words} {name}" for words, name in zip(fill, names, strict=True)],
        "label": labels,
        "name": names,
        "grade": [float(i) + 0.5 for i in labels],
    }


def _save(kind: type, config: object, folder: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
