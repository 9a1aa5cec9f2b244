"""Drafters, one file each, and the draft spec that `build_drafter` turns into any of them.

It must not know searches or costs.
"""
