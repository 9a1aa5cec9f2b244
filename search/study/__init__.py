"""The run of a search: its loop, its Optuna study, pruning, and several workers on one storage.

It must not know models, drafters or how an objective computes a score.
"""
