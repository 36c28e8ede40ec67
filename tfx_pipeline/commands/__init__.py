"""One file a command: its flags (`FLAGS`) and `main(flags) -> exit code`.

Or the module that the process turns into (`BECOMES`) and `arguments(flags)` for it; the user's own
after `--` follow them.

The first line of a command's docstring is its line in the overview. TFX and TensorFlow are
imported when a command runs, not when its flags are read.
"""
