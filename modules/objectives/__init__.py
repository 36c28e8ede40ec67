"""What is minimised, in pre-training and for the downstream tasks."""
