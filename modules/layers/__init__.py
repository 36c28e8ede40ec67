"""The layers of SuperMoE, one a file, named after the thing in the paper."""
