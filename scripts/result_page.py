"""Copies a report to a page of docs/results: python scripts/result_page.py REPORT NAME [--docs FOLDER]

The page is the report's table.md, with the machine and the date as its heading. Its pictures lie beside it, in a folder
of the page's name.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

from selfspec.errors import InputError
from selfspec.records import run_files

TABLE = "table.md"
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")


def write_page(report: Path, name: str, docs: Path) -> Path:
    """Write the page of a finished report; return its path.

    Args:
        report: folder of a `selfspec report`.
        name: name of the page, such as `systems-zen4-2026-11-28`.
        docs: folder of the pages.

    Raises:
        InputError: if the folder is no finished report, or there is a page of that name, which stays as it is.
    """
    if not (report / TABLE).is_file() or not run_files.is_finished(report):
        raise InputError(f"{report}: no finished report there (no {TABLE}); name a folder that selfspec report wrote")
    page = docs / f"{name}.md"
    if page.exists():
        raise InputError(f"{page} is there already; a page is not changed afterwards, so take another name")
    provenance = json.loads((report / run_files.PROVENANCE).read_text(encoding="utf-8"))
    machine = provenance.get("cuda") or provenance.get("cpu") or "unknown machine"
    text = (report / TABLE).read_text(encoding="utf-8").removeprefix("# Report\n")
    heading = f"# {machine}, {str(provenance.get('started'))[:10]}\n\nMade from `{provenance['run']['name']}`.\n"
    for picture in {match[2] for match in PICTURE.finditer(text)}:
        (docs / name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(report / picture, docs / name / picture)
    shown = PICTURE.sub(lambda match: f"![{match[1]}]({name}/{match[2]})", text)
    run_files.write_text(page, heading + shown)
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("name")
    parser.add_argument("--docs", type=Path, default=Path(__file__).parents[1] / "docs" / "results")
    asked = parser.parse_args()
    print(write_page(asked.report, asked.name, asked.docs))
