"""The sections of `check_gpu.py`: what the engine does by graphs on a GPU."""
