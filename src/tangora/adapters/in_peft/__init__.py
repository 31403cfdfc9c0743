"""Read an adapter's files through stock peft, and compare them with the adapter in float64."""
