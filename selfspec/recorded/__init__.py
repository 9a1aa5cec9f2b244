"""Forwards recorded once and replayed on a device (CUDA graphs); nothing else needs this folder."""
