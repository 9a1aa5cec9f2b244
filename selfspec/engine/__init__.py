"""The decode loop: draft, verify, commit, with its cache, masks and verdicts. Read this folder first.

It must not know any drafter, stop rule or searcher by name: these are plug-ins behind `protocols`.
"""
