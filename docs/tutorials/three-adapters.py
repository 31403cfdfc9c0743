# %% [markdown]
# # Fuse three LLM adapters, with coefficients chosen on your prompts
#
# Three LoRA adapters of one language model become one adapter, which stock peft loads.
#
# You bring adapters of one base model and a few prompts with answers. This notebook first makes small ones: a decoder
# of 0.1 million weights and three tasks on strings. With your own, begin at [Your rows](#your-rows).

# %% [markdown]
# ## A base model
#
# The decoder reads one token per character. It is trained on lines such as `cab= CAB`, in which each answer is
# either correct or a copy. So it knows what answers look like, and not which to give.

# %%
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LETTERS, BRACKETS, DIGITS = "abcdef", "([{<", "012345"
CLOSED = str.maketrans("([{<", ")]}>")
NEXT = str.maketrans("012345", "123456")
TASKS = {  # name -> the characters of its prompts, and the correct answer
    "caps": (LETTERS, str.upper),
    "close": (BRACKETS, lambda text: text.translate(CLOSED)),
    "next": (DIGITS, lambda text: text.translate(NEXT)),
}
draw = random.Random(0)


def prompt(task):
    return "".join(draw.choices(TASKS[task][0], k=3))


def line():
    task = draw.choice(list(TASKS))
    text = prompt(task)
    answer = draw.choice([TASKS[task][1](text), text])
    return f"{text}= {answer}<end>"


line(), line(), line()

# %%
characters = ["<pad>", "<end>", *LETTERS, *LETTERS.upper(), *BRACKETS, *")]}>", *"0123456= "]
core = Tokenizer(models.BPE({character: i for i, character in enumerate(characters)}, []))
core.decoder = decoders.Fuse()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>", model_max_length=16)

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=len(tokenizer),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=16,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=1,
    pad_token_id=0,
)
model = LlamaForCausalLM(config)
optimizer = torch.optim.AdamW(model.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=300)
for _ in range(300):
    ids = tokenizer([line() for _ in range(32)], return_tensors="pt", padding=True, padding_side="right").input_ids
    seen = ids != 0
    labels = ids.masked_fill(~seen, -100)
    labels[:, :5] = -100  # the prompt is not learned
    loss = model(input_ids=ids, attention_mask=seen.long(), labels=labels).loss
    loss.backward()
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()

model.save_pretrained("base")
tokenizer.save_pretrained("base")
print(f"loss {loss.item():.2f}, {model.num_parameters():,} weights")

# %% [markdown]
# ## Three adapters
#
# Each is trained on 200 prompts of its own task. They differ in rank, as adapters from different people do.

# %%
import tangora

Path("train").mkdir(exist_ok=True)
Path("rows").mkdir(exist_ok=True)


def write(file, task, rows):
    texts = [prompt(task) for _ in range(rows)]
    listed = [{"prompt": f"{text}=", "completion": TASKS[task][1](text)} for text in texts]
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in listed))


base = tangora.load_base("base", family="causal-lm", max_length=16, max_new_tokens=5)
for task, rank in {"caps": 4, "close": 8, "next": 4}.items():
    write(f"train/{task}.jsonl", task, 200)
    write(f"rows/{task}.jsonl", task, 100)
    loaded = tangora.load_task(task, base, {"train": f"train/{task}.jsonl", "test": f"rows/{task}.jsonl"})
    settings = tangora.FinetuneConfig(
        lora={"r": rank, "target_modules": "all-linear"},
        training={"steps": 40, "batch_size": 16, "learning_rate": 2e-3},
    )
    tangora.finetune(base, loaded, settings, out=f"adapters/{task}")

# %% [markdown]
# `tangora inspect` reads the folders alone and says whether they can be fused, and how.

# %%
# !tangora inspect adapters/caps adapters/close adapters/next

# %% [markdown]
# ## Your rows
#
# One file for each task, with a prompt and its answer in each line:

# %%
# !head -n 2 rows/caps.jsonl rows/close.jsonl rows/next.jsonl

# %% [markdown]
# Without rows, you would have to guess how much of each adapter to add. `tangora tune` uses 40 rows of each task to
# choose, and the others to score (`--dry-run` shows the cut alone):

# %%
# !tangora tune adapters/* --data caps=rows/caps.jsonl --data close=rows/close.jsonl --data next=rows/next.jsonl --labels 40 --out fused

# %% [markdown]
# Read the table by rows: each adapter is good at its own task alone, and the fused one at all three. *Kept* is its score as
# a share of the score of the task's own adapter, with a 95 % interval. A note says how one coefficient for all compares.
# Here its interval contains 0: on 60 rows a task, neither is better for certain.
#
# ## Load it with peft
#
# `fused` is a plain PEFT folder. Tangora is not needed to use it:

# %%
import peft
import transformers

decoder = transformers.AutoModelForCausalLM.from_pretrained("base")
decoder = peft.PeftModel.from_pretrained(decoder, "fused")
for text in ("fab= ", "([<= ", "203= "):
    tokens = tokenizer(text, return_tensors="pt")
    generated = decoder.generate(**tokens, max_new_tokens=5, do_sample=False)
    print(tokenizer.decode(generated[0], skip_special_tokens=True))

# %% [markdown]
# ## In Python, and with another search
#
# `tangora.search` does the same on tasks that you load. `learned` fits one coefficient for each adapter by gradient steps
# on the choosing rows; here they are rows that the adapters were trained on, since `rows` is the test.

# %%
tasks = [
    tangora.load_task(task, base, {"train": f"train/{task}.jsonl", "test": f"rows/{task}.jsonl"}) for task in TASKS
]
adapters = [f"adapters/{task}" for task in TASKS]
found = tangora.search(adapters, base, tasks, "learned", labels=40, steps=20)
print(found)
found.table

# %% [markdown]
# Which search needs which rows: [Three adapters and my prompts to one](../tune.md#which-search). If you have prompts
# without answers, [polish](../polish.md) the fused adapter. To serve it, [export](../serving.md) it.
