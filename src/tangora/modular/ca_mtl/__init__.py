"""CA-MTL (arXiv:2009.09139): an encoder whose norms, attention and embeddings depend on the task.

    embedding of the task ─ FiLM ─▶ `Conditional`: the hypernetwork, which is trained on all tasks
                                        │ baked(task)
                                        ▼
                                    `Baked`: plain vectors and matrices of one task, which are its adapter

Both put the same hooks into the encoder (`tangora.modular.ca_mtl.hooks`); they differ in where the values come from.
"""
