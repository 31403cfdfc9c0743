"""Our spaces, a file each; see `tangora.fusion.contract`."""
