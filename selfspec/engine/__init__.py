"""The decode loop: draft, verify, commit, with its cache, masks and verdicts. Read this folder first.

It must not know any drafter or stop rule by name, except those of plain decoding: `protocols` defines the plug-ins.
"""
