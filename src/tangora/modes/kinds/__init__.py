"""Tangora's own modes, one file each; the object ``MODE`` of a file is the mode of its name (`contract.Mode`).

lora          LoRA                                          answers with its updates in the weights
l_lora        LoRA, each site expanded at φ₀                 the same
tangent       LoRA, the whole network expanded at φ₀         answers with the expansion: linear in coefficients
full          every weight                                  answers with its changes in the weights
full_tangent  every weight, the whole network expanded      answers with the expansion
"""
