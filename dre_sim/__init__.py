"""WHEN, AND HOW MANY ACTIONS? Units, memories, links and platforms.

Turns counts into integer picoseconds and action counts; knows no joule.
"""
