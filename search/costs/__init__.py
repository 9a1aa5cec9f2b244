"""Cost tables: measure what forwards cost, once, and read the cost of any draft from the table.

It must not know objectives, searchers or prompts.
"""
