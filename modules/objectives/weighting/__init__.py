"""How much each task counts in fine-tuning (λ of eq. 9): one file a method, `methods.py` lists
them."""
