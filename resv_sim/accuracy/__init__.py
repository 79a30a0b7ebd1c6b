"""Accuracy as a measured quantity: the embedded model answers questions about rendered streams under every policy.

`config.py` says what is measured, `exam.py` renders and asks, `answering.py` runs the model, `outcomes.py` does that
once per setting and remembers it, `table.py` and `statistics.py` make numbers of right and wrong, `platforms.py` times
and prices the same run, `benchmark.py` puts all of it together.
"""
