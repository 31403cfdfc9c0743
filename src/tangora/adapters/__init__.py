"""An adapter as a value, and its files."""
