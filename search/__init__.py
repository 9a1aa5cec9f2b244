"""Search for the best draft: space, constraints, objectives, starts, finals, and the rooms below.

It must not know Hydra, run folders of other verbs, tables or pictures; those are in `experiments`.
"""
