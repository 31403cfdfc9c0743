"""The functions of ``import tangora`` that do more for a person than those they call.

They take folders where adapters are wanted, keywords where settings are wanted, and show progress in a terminal or a
notebook. What they call is as public; `tangora.evaluation`, `tangora.modes` and `tangora.runs` have it.
"""
