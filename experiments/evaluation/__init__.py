"""Arms of an evaluation: ways to decode the same prompts, interleaved, and one row for each answer.

It must not know how arms are configured or searched; only `predicted` reads a configuration.
"""
