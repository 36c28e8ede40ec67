"""Speed of serving, as ratios to the signature called in process."""
