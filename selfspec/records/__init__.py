"""Files of a run folder, and the provenance of a run.

It must not know the meaning of rows, models or searches.
"""
