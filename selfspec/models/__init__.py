"""A model and its parts: find and load its weights, find its sublayers, bind a draft, pack weights, attention kernels.

It must not know stop rules, searches, data sets or run folders.
"""
