"""Whether the input graph keeps up with the model."""
