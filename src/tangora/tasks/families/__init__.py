"""The families: one file each, found by its name; see `tangora.tasks.contract.Family`.

A family's file imports no torch until one of its functions is called: a recipe is read by its settings alone.
"""
