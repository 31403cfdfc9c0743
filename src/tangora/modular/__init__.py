"""Modules that a mode adds to a frozen network: how they are put in, how they are run, and taken out again.

    Network (a torch.nn.Module) ── attached(backbone, network) ──▶ the backbone answers with it, until the block ends
        │   connect: its hooks in the backbone                        its parameters are the backbone's, so they train
        └── state_dict ──▶ an adapter of kind ``modules`` or ``routed``, one tensor a parameter

The layers of the backbone stay what they are; a network computes beside them, in forward hooks. So nothing has to be
unwrapped, and every transformers class can be adapted without a class of our own.
"""
