"""Fits from the model's own texts and hidden states: bridges, vocabularies of trimmed heads, states of drafts.

It must not know objectives, costs or searchers.
"""
