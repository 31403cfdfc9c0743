"""An adapter's files as stock peft reads them, compared with the adapter in float64."""
