"""The built-in families, one module each, found by its name; see `tangora.tasks.contract.Family`.

The modules import torch inside functions only, since reading a recipe needs nothing but a family's settings.
"""
