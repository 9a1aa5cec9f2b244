"""Simulations of requests that come and go: which arms and rates there are, their rows, table and picture.

It knows `selfspec.serving`, and no configuration.
"""
