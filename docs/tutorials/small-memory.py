# %% [markdown]
# # Merge checkpoints in 100 MB
#
# Four checkpoints, together many times as large as the memory that their merge takes.
#
# A merge reads blocks of tensors, calculates in float32, and writes. Its memory does not grow with the models. Here a
# base of 48 million weights and three fine-tuned models are made, and merged twice: by Tangora, and by a script that
# loads everything.

# %%
import torch
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=16_000,
    hidden_size=640,
    intermediate_size=1_600,
    num_hidden_layers=8,
    num_attention_heads=8,
    tie_word_embeddings=True,
)
torch.manual_seed(0)
model = LlamaForCausalLM(config)
model.save_pretrained("base", max_shard_size="80MB")
for name in ("code", "math", "chat"):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=1e-3)
    model.save_pretrained(f"ft-{name}", max_shard_size="80MB")
print(f"{model.num_parameters():,} weights in each")
del model

# %%
# !du -sh base ft-code ft-math ft-chat

# %% [markdown]
# ## Plan
#
# `--dry-run` writes nothing. It checks that the checkpoints fit each other, and says how much memory the merge needs:

# %%
# !tangora merge base ft-code ft-math ft-chat --weights 1.0 --threads 1 --out merged --dry-run

# %% [markdown]
# ## Merge, and measure
#
# The kernel of the system keeps the largest resident memory of a process, libraries included. A small process starts the
# command and reads it:

# %%
import subprocess
import sys

MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(f"peak memory: {peak * (1 if sys.platform == 'darwin' else 1024) / 1e6:.0f} MB")
"""


def measured(*command):
    done = subprocess.run([sys.executable, "-c", MEASURE, *command], capture_output=True, text=True)
    print(done.stdout or done.stderr)


models = ["base", "ft-code", "ft-math", "ft-chat"]
measured("tangora", "merge", *models, "--weights", "1.0", "--threads", "1", "--out", "merged")

# %% [markdown]
# The same sum of changes by a script that loads all models, the usual way:

# %%
ALL_AT_ONCE = """
from pathlib import Path
from safetensors.torch import load_file, save_file

def load(folder):
    return {name: value for file in sorted(Path(folder).glob("*.safetensors")) for name, value in load_file(file).items()}

base, *tuned = [load(folder) for folder in ("base", "ft-code", "ft-math", "ft-chat")]
save_file({name: value + sum(one[name] - value for one in tuned) for name, value in base.items()}, "all.safetensors")
"""
measured(sys.executable, "-c", ALL_AT_ONCE)

# %% [markdown]
# ## What came out
#
# `merged` is a checkpoint like its parents, with their configuration. One tensor, calculated again in float64:

# %%
from pathlib import Path

from safetensors import safe_open

NAME = "model.layers.3.mlp.up_proj.weight"


def tensor(folder):
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            if NAME in file.keys():
                return file.get_tensor(NAME).double()


base, merged = tensor("base"), tensor("merged")
expected = base + sum(tensor(folder) - base for folder in models[1:])
print(f"largest difference: {(merged - expected).abs().max():.1e}, largest weight: {expected.abs().max():.2f}")

# %% [markdown]
# The difference is the rounding of the file to float32. A merge that is killed goes on when the same command is given
# again, and ends with the same bits. Other methods (`--method ties`, `tsv_m`) and adapters (`tangora merge ADAPTER...
# --base BASE`) are merged the same way: [Fuse adapters and checkpoints](../fusing.md). Measurements with large models,
# beside other tools: [Benchmarks](../benchmarks.md).
