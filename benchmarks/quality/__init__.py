"""What a part of the system is worth, in AUC on the same data with and without it."""
