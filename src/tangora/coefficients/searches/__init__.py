"""Our own searches, a file each: the name in a recipe is the name of the file. No torch until one is called."""
