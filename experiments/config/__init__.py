"""From configuration to objects: composition, the schema of the settings, and builders of models, drafts and searches.

It must not know how runs are shown or judged; `search` and `selfspec` get plain arguments from it.
"""
