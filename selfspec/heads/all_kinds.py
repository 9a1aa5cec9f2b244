"""Import every kind of head, so that each registers itself."""

from selfspec.heads import blockwise, eagle, mtp
from selfspec.heads.refinement import refine

__all__ = ["blockwise", "eagle", "mtp", "refine"]
