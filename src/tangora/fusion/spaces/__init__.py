"""The built-in spaces, one module each; see `tangora.fusion.contract`."""
