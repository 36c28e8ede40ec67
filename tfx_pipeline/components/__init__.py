"""Our own TFX components, one a file."""
