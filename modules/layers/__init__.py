"""The layers of the papers, one a file, named after the thing in the paper."""
