"""The tables and figures of the paper, and a few beyond it, from run folders alone: one module each."""
