# %% [markdown]
# # A run on a cluster
#
# A run on two nodes of a Ray cluster. One of them is killed in the middle of a training.
#
# The nodes are processes of this computer, with one processor each, so that the notebook runs anywhere
# (`pip install 'tangora[ray]'` brings Ray). On hosts you start nodes by `ray start`, and put the run's folder on storage that
# all of them mount. The rest is as it is here.

# %% [markdown]
# ## Two nodes
#
# The head does no jobs: it has no processors to offer. The settings are for a quick notebook: a node that is gone is
# missed after two seconds.

# %%
import os

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

QUICK = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
    "prestart_worker_first_driver": False,
}
STORE = 80 * 2**20  # bytes of a node's object store, through which only jobs and reports pass
cluster = Cluster(
    initialize_head=True,
    head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE, "_system_config": QUICK},
)
nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(2)]
os.environ["RAY_ADDRESS"] = cluster.address  # which `--address auto` reads

# %% [markdown]
# ## The run
#
# Two tasks of the quickstart, an adapter for each, and their fusion. Every node needs the base and the rows; here both come
# with the packages. A training writes a checkpoint every ten steps.

# %%
RECIPE = """
name: cluster
base: {family: image-zero-shot, model: "builtin:quickstart"}
tasks:
  - {name: digits, source: {builtin: digits}, templates: ["a photo of a {}"]}
  - {name: textures, source: {builtin: textures}, templates: ["a photo of a {}"]}
lora: {r: 8, alpha: 16, target_modules: [q_proj, k_proj, v_proj, out_proj]}
training: {steps: 100, batch_size: 32, learning_rate: 4.0e-3, checkpoint_every: 10}
modes: {lora: {}}
fusion:
  methods:
    - {method: task_arithmetic, weights: [0.3, 0.5]}
machine: {threads: 1}
"""
with open("cluster.yaml", "w") as file:
    file.write(RECIPE)

# %% [markdown]
# In a terminal the command is `tangora run cluster.yaml --executor ray --address auto --out run`. Here it works in the
# background, so that the next cells can look at it:

# %%
import subprocess

COMMAND = "tangora run cluster.yaml --executor ray --address auto --out run"
driver = subprocess.Popen(COMMAND.split(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

# %% [markdown]
# ## Look at it
#
# `tangora status` reads the run's folder alone. So it works in any terminal, on any host that has the folder. This waits
# until both nodes train:

# %%
import json
import time


def jobs(state):
    """Return what processes do, or did when they were killed."""
    done = subprocess.run(["tangora", "status", "run", "--json"], capture_output=True, text=True)
    listed = json.loads(done.stdout)["jobs"] if done.returncode == 0 else []
    return [job for job in listed if job["kind"] == "expert" and job["state"] == state]


while len(jobs("running")) < 2 and driver.poll() is None:
    time.sleep(0.5)
time.sleep(5)  # of training

# %%
# !tangora status run

# %% [markdown]
# ## Kill a node
#
# The second node is killed with all of its processes, as if its power were cut:

# %%
cluster.remove_node(nodes[1], allow_graceful=False)

# %%
# !tangora status run

# %% [markdown]
# The run notices. It gives the job to the other node, which goes on from the last checkpoint in the run's folder, once its own
# training is done:

# %%
driver.wait()

# %%
# !grep "ready\|begun\|has ended\|lora · [a-z]*: done" run/run.log | cut -c 12-110

# %%
# !tangora status run

# %% [markdown]
# ## The same files
#
# Neither the nodes nor the killed one can be seen in the results. The same recipe in one process, without Ray, writes the
# same adapters and the same scores, bit for bit, if the number of threads is the same (`machine.threads` above):

# %%
from pathlib import Path

ALONE = "tangora run cluster.yaml --out alone --quiet"
subprocess.run(ALONE.split(), check=True, stdout=subprocess.DEVNULL)
alone = Path("alone")
compared = [alone / "scores.csv", *sorted(alone.glob("adapters/*/*/*.safetensors"))]
for path in compared:
    other = Path("run") / path.relative_to(alone)
    print(f"{path.relative_to(alone)}: {'the same' if path.read_bytes() == other.read_bytes() else 'DIFFERENT'}")

# %%
# !tangora table run

# %% [markdown]
# ## End
#
# The cluster was not started by the run, so it outlives it. This ends its processes:

# %%
cluster.shutdown()

# %% [markdown]
# What nodes need, GPUs, SLURM, Kubernetes, and how the speed grows with the number of workers:
# [Runs on several GPUs or hosts](../scale.md).
