"""Tangora's own searches, one file each, named as in a recipe. None imports torch before it is called."""
