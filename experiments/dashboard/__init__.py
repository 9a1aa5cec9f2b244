"""The local dashboard: pages that show run folders in the browser. It reads run folders and writes nothing.

It must not know Hydra, and it loads no model.
"""
