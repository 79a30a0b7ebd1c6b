"""WHICH TOKENS? Streams of keys and queries, retrieval policies, and what a policy selects.

Counts operations, tokens and bytes; knows no second and no joule.
"""
