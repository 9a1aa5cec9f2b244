"""Searches while decoding: which draft suits the text that is being written now.

A searcher here chooses the drafter before each round (`selfspec.drafters.online`). It must not know Hydra, run folders
or tables; what it has learnt is a dictionary that callers store.
"""
