# %% [markdown]
# # Write a fusion method
#
# A method of your own, tested by the contract suite, and compared with built-in ones on the same adapters.
#
# A method is a function from stacked updates, `[tasks, *param]`, to one update. Everything else is Tangora's: reading
# adapters, low-rank algebra, searches, recipes, reports.

# %% [markdown]
# ## The idea
#
# If one of several experts is far off, a sum follows it. The median of the updates does not. So: multiply each update
# by its weight, and take the median, entry by entry.

# %%
import torch

from tangora.methods import fusion_method


@fusion_method("median", granularity="element", reference="arXiv:1803.01498", default_weight=1.0, additive=False)
def median(deltas, *, weights):
    """Return the median of the weighted updates, entry by entry."""
    ordered = (deltas * weights).sort(0).values
    below, above = (len(ordered) - 1) // 2, len(ordered) // 2
    return (ordered[below] + ordered[above]) / 2


median(torch.tensor([[1.0], [2.0], [90.0]]), weights=torch.ones(3, 1))

# %% [markdown]
# What the decorator declares are promises. `granularity="element"` says that each entry depends on the same entry of the
# updates alone, so that the engine may hand over parts of a tensor. `additive=False` says that the result is not a sum of
# weighted updates.
#
# ## The contract
#
# `check_method` feeds the method with shapes, dtypes and orders, and raises an error with the promise that is broken:

# %%
from tangora.testing import check_method

try:
    check_method("median")
except AssertionError as broken:
    print(broken)

# %% [markdown]
# True: updates in float32 with weights in float64 gave a result in float64, which is not what a file of float32 needs. So
# calculate in the wider of the two, at least in float32, and return the dtype of the updates. To define the name again
# replaces it:


# %%
@fusion_method("median", granularity="element", reference="arXiv:1803.01498", default_weight=1.0, additive=False)
def median(deltas, *, weights):
    """Return the median of the weighted updates, entry by entry."""
    dtype = torch.promote_types(deltas.dtype, torch.float32)
    ordered = (deltas.to(dtype) * weights.to(dtype)).sort(0).values
    below, above = (len(ordered) - 1) // 2, len(ordered) // 2
    return ((ordered[below] + ordered[above]) / 2).to(deltas.dtype)


check_method("median")

# %% [markdown]
# It is silent: all promises hold. This one does not keep its own. It looks at the largest entry of the whole tensor, so
# it gives other results for parts:


# %%
@fusion_method("loudest", granularity="element", reference="none", default_weight=1.0, additive=False)
def loudest(deltas, *, weights):
    """Return the sum of the weighted updates without entries below a tenth of the largest."""
    total = (deltas.double() * weights.double()).sum(0)
    return torch.where(total.abs() > 0.1 * total.abs().max(), total, 0).to(deltas.dtype)


try:
    check_method("loudest")
except AssertionError as broken:
    print(broken)

# %% [markdown]
# With `granularity="tensor"` it would be honest, and pass.
#
# ## In a fusion
#
# Three adapters of one task, with rank 4 on two layers of width 16. Two of them agree up to noise. The third is broken:
# its update is ten times as large and points elsewhere.

# %%
from pathlib import Path

import peft


def adapter(folder, seed, scale=1.0):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16))
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=4, target_modules=["0", "2"]))
    same, own = torch.Generator().manual_seed(1), torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            shared, noise = (torch.randn(parameter.shape, generator=one) for one in (same, own))
            parameter.data = scale * ((shared + 0.1 * noise) if scale == 1 else noise)
    model.save_pretrained(folder)


adapter("adapters/one", 2)
adapter("adapters/two", 3)
adapter("adapters/broken", 4, scale=10.0)
sorted(path.name for path in Path("adapters").iterdir())

# %% [markdown]
# Each fusion is compared with the mean of the two good adapters, by the relative distance of the updates:

# %%
import tangora

folders = ["adapters/one", "adapters/two", "adapters/broken"]
good = tangora.fuse(folders[:2], "average").task_vector
print("method            distance")
for name in ("average", "ties", "mean_norm", "median"):
    fused = tangora.fuse(folders, name)
    print(f"{name:<16} {(fused.task_vector - good).norm() / good.norm():9.2f}")

# %% [markdown]
# The sum of low-rank updates has low rank. A median has not: the result has full rank, unless you cut it. As for any
# method, `rank` gives the best approximation:

# %%
fused = tangora.fuse(folders, "median", rank=4)
fused.save("fused")
print("rank", peft.PeftConfig.from_pretrained("fused").r)
print(f"error of the cut: {(fused.task_vector - tangora.fuse(folders, 'median').task_vector).norm() / good.norm():.2f}")

# %% [markdown]
# ## Ship it
#
# In this process the decorator has registered the name. For recipes and the command line, put the function into a
# package with an entry point in the group `tangora.methods`. [Plug-ins](../plug-ins.md) has the two files, and the eight
# other kinds of members: metrics, searches, modes, routers, ...
