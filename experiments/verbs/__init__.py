"""The verbs of the command line, one file each: what a user can type after `selfspec`.

They must not know how drafts are made, how objectives are scored or how tables are computed.
"""
