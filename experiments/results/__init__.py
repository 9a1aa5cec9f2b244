"""Run folders: their writer, their readers, the lookup by a user's words, and the values of tables and pictures.

It must not know Hydra, models or how results are shown interactively.
"""
