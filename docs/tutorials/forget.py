# %% [markdown]
# # Forget a task, and a + b − c
#
# Task vectors can be subtracted: a model loses one ability, or gains one that nothing was trained for.
#
# The base is the tiny CLIP of the quickstart, which is pretrained on first use. Adapters are L-LoRA: they share their frozen A, so
# every sum and difference of them has the rank of one.

# %%
import tangora

base = tangora.load_base("builtin:quickstart", family="image-zero-shot")
prompts = ["a photo of a {}", "a picture of a {}"]
tasks = {
    name: tangora.load_task(name, base, {"builtin": name}, templates=prompts)
    for name in ("digits", "textures", "photos")
}
settings = tangora.FinetuneConfig(
    train="l-lora",
    lora={"r": 8, "alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "out_proj"]},
    training={"steps": 60, "batch_size": 32, "learning_rate": 2e-3},
)


def score(adapter, task, split="test"):
    return tangora.evaluate(adapter, base, task, split=split, progress=False).mean


# %% [markdown]
# ## Forget digits
#
# An adapter of digits, added with a negative coefficient: θ₀ − λν ([arXiv:2212.04089](https://arxiv.org/abs/2212.04089)). The larger
# λ, the more is forgotten, and the more others suffer. So λ is the largest at which every other task keeps 95 % of
# what the base scores, on validation rows.

# %%
expert = tangora.finetune(base, tasks["digits"], settings)
others = [tasks["textures"], tasks["photos"]]
for task in tasks.values():
    print(f"{task.name:9} base {score(None, task):.3f}   expert of digits {score(expert, task):.3f}")

# %%
allowed = [0.0]
for weight in (0.5, 1, 1.5, 2, 3, 4):
    forgetful = tangora.fuse([expert], weights=-weight)
    kept = min(score(forgetful, task, "validation") / score(None, task, "validation") for task in others)
    print(
        f"λ {weight:<4} digits {score(forgetful, tasks['digits'], 'validation'):.3f}   the others keep {kept:.1%} or more"
    )
    allowed += [weight] if kept >= 0.95 else []

# %%
forgetful = tangora.fuse([expert], weights=-max(allowed))
print(f"base - {max(allowed):g} digits, on test rows:")
for task in tasks.values():
    print(f"{task.name:9} {score(None, task):.3f} -> {score(forgetful, task):.3f}")

# %% [markdown]
# Chance is 0.1 for digits, 0.33 for textures, 0.1 for photos. The result is an adapter like any other; `tangora merge` puts it
# into the weights of the base, so that nobody can take it off again.
#
# ## a + b − c
#
# Now a task without a training row: *noisy odd digits*. There are rows of clean odd digits (a), of noisy even ones (b) and of
# clean even ones (c). Noise is what b has and c has not, so a + b − c is the guess. The pictures are written as files of
# arrays.

# %%
import numpy as np

from tangora.quickstart import data

rows = data.load("digits")
noisy_odd = {key: np.concatenate([rows["train"][key], rows["test"][key]]) for key in ("image", "label")}


def written(name, odd, noisy, parts):
    files = {}
    for split, part in parts.items():
        wanted = part["label"] % 2 == odd
        images = part["image"][wanted]
        if noisy:
            drawn = np.random.default_rng(0).integers(0, 128, images.shape)
            images = (images // 2 + drawn).astype(np.uint8)
        files[split] = f"{name}-{split}.npz"
        np.savez(files[split], images=images, labels=part["label"][wanted] // 2)
    words = data.labels("digits")[odd::2]
    columns = {"image": "images", "label": "labels"}
    return tangora.load_task(name, base, {"npz": files}, labels=words, templates=prompts, **columns)


a = written("odd", 1, False, rows)
b = written("noisy-even", 0, True, rows)
c = written("even", 0, False, rows)
target = written("noisy-odd", 1, True, {"train": rows["validation"], "test": noisy_odd})
len(target.splits["test"])

# %% [markdown]
# λ is selected for every line by itself, on the rows that are called `train` of the target. Nothing is trained on them.

# %%
vectors = {task.name: tangora.finetune(base, task, settings) for task in (a, b, c)}
lines = {
    "a": ["odd"],
    "b": ["noisy-even"],
    "a + b": ["odd", "noisy-even"],
    "a + b - c": ["odd", "noisy-even", "even"],
}
print(f"{'base':10} {'':6}{score(None, target):.3f}")
for name, members in lines.items():
    signs = [-1 if member == "even" else 1 for member in members]
    made = {
        weight: tangora.fuse([vectors[member] for member in members], weights=[weight * sign for sign in signs])
        for weight in (0.5, 1, 1.5)
    }
    best = max(made, key=lambda weight: score(made[weight], target, "train"))
    print(f"{name:10} λ {best:<4}{score(made[best], target):.3f}")

# %% [markdown]
# With one model and one seed, this shows that the algebra works, not how well it works in other settings. A standard error of a
# score here is about 0.02. `examples/negation_and_analogy.py` does the same as a script:
# [Negation and analogy](../negation-and-analogy.md).
