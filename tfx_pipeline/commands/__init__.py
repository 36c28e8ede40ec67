"""One file a command: its flags (`FLAGS`) and `main(flags) -> exit code`.

The first line of a command's docstring is its line in the overview. TFX and TensorFlow are
imported when a command runs, not when its flags are read.
"""
