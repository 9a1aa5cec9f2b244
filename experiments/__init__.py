"""The command line, the runs it writes, and the readers of these runs: everything that knows Hydra, tables and figures.

`search` and `selfspec` must not know it.
"""
