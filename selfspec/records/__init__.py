"""Files of a run folder, the provenance of a run, and what is kept for later runs.

It must not know the meaning of rows, models or searches.
"""
