"""THE SHELL: configuration, pipeline, reports and the command line. Computes nothing of its own."""

__version__ = "0.1.0"
