"""Design-space sweeps: many configurations of one experiment, on this machine or on many.

`config.py` says what a sweep is, `space.py` which points it has, `runner.py` and `evaluate.py` run them, `store.py`
keeps them, `search.py` chooses them, `report.py` and its neighbours show them, `explain.py` says why.
"""
