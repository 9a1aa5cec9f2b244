"""The tables and figures of the paper, and a few more, from run folders alone: one module for each.

It must not know models, Hydra or how a run was made.
"""
