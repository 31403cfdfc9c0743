"""The built-in formats of adapters, one module or package each. Its object ``FORMAT`` implements `contract.Format`.

lora    a PEFT LoRA directory
delta   the changes of all weights, in one file
"""
