"""Models: small compositions of `modules/layers`; `architectures.py` lists them."""
