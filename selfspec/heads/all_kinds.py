"""Import every kind of head, so that each registers itself."""

from selfspec.heads import blockwise, eagle, mtp

__all__ = ["blockwise", "eagle", "mtp"]
