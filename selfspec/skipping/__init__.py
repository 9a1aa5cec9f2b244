"""What a draft skips and what replaces it: skip sets, plans, bridges, trimmed heads, rounded weights, their files.

It must not know the decode loop, stop rules or searches.
"""
