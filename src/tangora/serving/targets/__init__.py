"""One module for each server, with its rules: `tangora.serving.contract.Target`."""
