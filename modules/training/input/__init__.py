"""The training input: an epoch's batches as a pure function of (data, seed, epoch)."""
