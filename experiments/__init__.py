"""The command line, and the readers of what it wrote: everything that knows Hydra, tables and figures."""
