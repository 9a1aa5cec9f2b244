"""Replay: the rounds that the decoder would make with a draft, computed from reference texts without verification.

It must not know searchers, studies or files.
"""
