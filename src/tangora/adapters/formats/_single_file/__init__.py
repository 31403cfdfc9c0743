"""Read and write adapters in one safetensors file, whatever its names are.

    reading   file -> adapter
    weights   one module's tensors -> its update: LoRA, LoCon, LoHa, LoKr
    header    the metadata of a file: kept, extended, and what would become wrong computed anew
    writing   adapter -> file
    format    these as a `tangora.adapters.contract.FileFormat`

The names are in `tangora.adapters.layouts`.
"""
