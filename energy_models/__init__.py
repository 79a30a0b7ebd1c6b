"""HOW MANY JOULES AND MM2? Price lists, scaling laws, bills.

Turns action counts into joules; knows no schedule.
"""
