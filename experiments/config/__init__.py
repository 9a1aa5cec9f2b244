"""From configuration to objects: all that knows Hydra. Below it there are plain arguments."""
