"""The convenience functions of ``import tangora``.

They accept folders in place of adapters and keywords in place of settings, and show progress in a terminal or a
notebook. The functions that they call are public too, in `tangora.evaluation`, `tangora.modes` and `tangora.runs`.
"""
