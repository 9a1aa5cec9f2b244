"""Twenty-four prompts that ship with the project, for a first run without a download.

Eight articles to summarise, eight small Python functions to write and eight questions; half of each is for calibration.
These are too few for published numbers, but enough to check that a set-up works.
"""

from pathlib import Path
from typing import Any

from selfspec.data.rows import read_rows
from selfspec.data.task import Example, Part


class Mini:
    """The shipped data set; its categories are "summary", "code" and "question"."""

    name: str = "mini"
    version: str = "1"

    def examples(self, part: Part) -> list[Example]:
        """Twelve examples, four of each category."""
        return [
            Example(id=row["id"], prompt=row["prompt"], reference=row["reference"], category=row["category"])
            for _, row in read_rows(Path(__file__).with_name("mini.jsonl"))
            if row["part"] == part
        ]

    def facts(self) -> dict[str, Any]:
        """Origin of the prompts."""
        return {"source": "selfspec"}
