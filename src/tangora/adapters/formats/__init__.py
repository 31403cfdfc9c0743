"""Tangora's own formats of adapters, one file or package each; its object ``FORMAT`` is the format (`contract.Format`).

lora    a PEFT LoRA directory
delta   the changes of all weights, in one file
"""
