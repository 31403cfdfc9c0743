"""What a run is: the recipe and its models. Nothing here imports torch."""
