"""Seconds, ratios with intervals, and exactness of outputs.

It must not know layers, skip sets or drafters: it sees tokens, counts and seconds.
"""
