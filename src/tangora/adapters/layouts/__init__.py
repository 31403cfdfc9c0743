"""How adapters in one file name the modules of a model, and one table between these names.

    modules   the modules of Stable Diffusion's UNets, of CLIP, T5 and Flux, in diffusers' names and the original's
    models    model -> its modules, and the names that each format has for them: the table
    lookup    the names of a file -> the models that have them; site -> name in a format
    pieces    modules that are one in the original and several in diffusers: split and joined exactly
    details   what such an adapter has besides updates: its format, its model, the metadata of its file
    common    adapters of several formats -> sites of one naming

A site's name is the component and diffusers' path (``unet.mid_block.attentions.0.proj_in``), whatever the file's own
name is. Only modules that the original fuses keep the original's path (``transformer.double_blocks.0.img_attn.qkv``)
until they are combined with diffusers' own. Sites of an unknown model keep the names of their file.
"""
