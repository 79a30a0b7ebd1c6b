"""HOW FAR FROM SOMETHING TRUSTED? Every hardware model against simulators, measurements and published figures.

`tables` reads reference tables, one module per model compares a row with ours, `suite` runs them, `report` shows them.
Nothing here fits anything.
"""
