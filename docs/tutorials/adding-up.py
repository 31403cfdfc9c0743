# %% [markdown]
# # L-LoRA and tangent adapters, and how far they add up
#
# Two tasks, three kinds of adapters, and a picture of how far each adapter changes the other task's answers.
#
# An adapter changes a network's weights. Two changes can be added, but what the network answers is not linear in its
# weights: each change disturbs what the other one learned. L-LoRA trains every adapted layer in the tangent space of the base,
# a tangent adapter the whole network. The nearer an adapter is to linear, the less two of them should disturb each other.
# Here you measure it.

# %% [markdown]
# ## Two tasks
#
# The base is the tiny CLIP of the quickstart, which is pretrained on first use. The tasks come with the packages:
# which handwritten digit, and brick, grass or gravel.

# %%
import tangora

base = tangora.load_base("builtin:quickstart", family="image-zero-shot")
prompts = ["a photo of a {}", "a picture of a {}"]
names = ("digits", "textures")
tasks = [tangora.load_task(name, base, {"builtin": name}, templates=prompts, limit={"test": 160}) for name in names]
[len(task.splits["test"]) for task in tasks]

# %% [markdown]
# ## Three kinds of adapters
#
# Only `train` differs, and the rate: L-LoRA and tangent adapters train B alone, so that the problem stays linear in what
# is trained, and need larger steps.

# %%
RATES = {"lora": 4e-3, "l-lora": 8e-3, "tangent": 8e-3}
experts = {}
for kind, rate in RATES.items():
    settings = tangora.FinetuneConfig(
        train=kind,
        lora={"r": 8, "alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "out_proj"]},
        training={"steps": 80, "batch_size": 32, "learning_rate": rate},
    )
    experts[kind] = [tangora.finetune(base, task, settings) for task in tasks]

print(f"{'':10}{'digits':>8}{'textures':>10}")
alone = [tangora.evaluate(None, base, task).mean for task in tasks]
print(f"{'base':10}{alone[0]:8.2f}{alone[1]:10.2f}")
for kind, pair in experts.items():
    own = [tangora.evaluate(expert, base, task).mean for expert, task in zip(pair, tasks)]
    print(f"{kind:10}{own[0]:8.2f}{own[1]:10.2f}")

# %% [markdown]
# ## The disentanglement error
#
# At a point $(\lambda_1, \lambda_2)$ of the plane of two adapters, take the answers of the sum to each task's own rows, and count
# those that the *other* adapter changed. The shares of both tasks, added up, are the disentanglement error $\xi$
# ([arXiv:2305.12827](https://arxiv.org/abs/2305.12827)): 0 is no interference, 2 is the most.

# %%
from tangora.analysis import disentanglement_error, survey

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


def answers_of(pair):
    def answers(point):
        weights = [float(weight) for weight in point]
        adapter = tangora.fuse(pair, weights=weights) if any(weights) else None
        return tangora.evaluate(adapter, base, tasks, progress=False)

    return answers


planes = {kind: survey(answers_of(pair), names, GRID) for kind, pair in experts.items()}
errors = {kind: disentanglement_error(plane) for kind, plane in planes.items()}
for kind, error in errors.items():
    print(f"{kind:10} mean {error.mean():.3f}   at (1, 1) {error[-1, -1]:.3f}")

# %%
import matplotlib.pyplot as plt

drawn, axes = plt.subplots(1, 3, figsize=(9, 3.2), dpi=90, sharey=True, layout="constrained")
for axis, (kind, error) in zip(axes, errors.items()):
    shown = axis.contourf(
        GRID, GRID, error.T, levels=[level / 10 for level in range(11)], cmap="viridis_r", extend="max"
    )
    axis.set(title=kind, xlabel="λ of digits", aspect="equal")
axes[0].set_ylabel("λ of textures")
drawn.colorbar(shown, ax=axes, label="disentanglement error ξ")
plt.show()

# %% [markdown]
# ## What it means for a fusion
#
# The mean test score of both tasks, for one coefficient λ for both. The experts' mean is what a fusion can keep.

# %%
print(f"{'':10}{'experts':>9}" + "".join(f"{f'λ {weight:g}':>9}" for weight in GRID[1:]))
for kind, plane in planes.items():
    own = [plane.results["digits"][-1][0].score, plane.results["textures"][0][-1].score]
    both = [[plane.results[name][i][i].score for name in names] for i in range(1, len(GRID))]
    print(f"{kind:10}{sum(own) / 2:9.3f}" + "".join(f"{sum(pair) / 2:9.3f}" for pair in both))

# %% [markdown]
# Adapters of this strength are far from adding up on so small a network. The tangent adapters disturb each other least and
# lose least at every λ; they also learn a little less. L-LoRA, which is linear in each layer but not in the network, does no better
# here than LoRA.
#
# Read ξ beside the scores: a weak adapter changes little, its own answers included, so a small ξ alone proves nothing. With one toy model,
# one seed and 160 rows a task, this shows what to look at, and ranks nothing; for the seven text tasks see
# [Tangent adapters](../tangent.md). If rows of the tasks can be had, a [polish](../polish.md) wins most of the loss back. `tangora analyze RUN` computes the same for every pair of a run and adds the pictures to
# its report.
#
# L-LoRA adds up exactly in another way: its adapters share their frozen A, so the sum of two of rank 8 has rank 8. LoRA trains
# A, and its sum has rank 16:

# %%
print(tangora.fuse(experts["l-lora"], weights=0.5))
print(tangora.fuse(experts["lora"], weights=0.5))
