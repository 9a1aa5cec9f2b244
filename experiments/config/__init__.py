"""How a configuration is composed: words, kinds, the schema of the settings, options, sweeps; all of Hydra.

Must not know: what is built from it (`experiments.builders`).
"""
