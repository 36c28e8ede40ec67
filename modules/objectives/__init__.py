"""What is minimised: masked channel prediction and the downstream tasks."""
