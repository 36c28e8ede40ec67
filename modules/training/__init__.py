"""Training: the input reader, one loop for both phases, the TFX run_fns, the export."""
