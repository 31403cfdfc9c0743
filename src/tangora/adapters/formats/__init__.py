"""The built-in formats of adapters, one module or package each. Its object ``FORMAT`` implements `contract.Format`.

lora    a PEFT LoRA directory
delta   the changes of all weights, in one file
kohya, diffusers, comfy, peft   adapters of diffusion models in one file, by the names of their modules
mlx     the folder of mlx-lm
"""
