"""The public part of a configuration and a provenance: everything but secrets and the user's home folder.

This module turns plain trees into plain trees. It must not know W&B or Hydra.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MASK = "***"
# command lines, which the configuration repeats, uncommitted code, and thousands of digests of prompts
LEFT_OUT = ("argv", "diff", "seen")
_SECRET_NAME = re.compile(r"(^|[_.-])(token|password|passwd|secret|credentials?|(api_?|private_|access_)?key)$", re.I)
_LOGIN = re.compile(r"(?<=://)\S*@")  # up to the last @: a password may hold one
_QUERY = re.compile(r"(\S+://\S*?)\?\S*")
_TOKEN = re.compile(r"\b(hf_|gh[opsru]_|github_pat_|sk-|xox[abp]-|AKIA)[\w-]{12,}")
LEAST = 6  # least letters of a secret value to mask: shorter values occur inside ordinary words


def public(tree: Any) -> Any:
    """`tree` without private data.

    The function masks values with the name of a secret, logins and queries of addresses, texts in the form of a
    well-known service's token, and, in all texts, the value of each environment variable with the name of a secret.
    `~` replaces the user's home.
    """
    return _public(tree, [v for k, v in os.environ.items() if _SECRET_NAME.search(k) and len(v) >= LEAST])


def _public(tree: Any, secrets: list[str]) -> Any:
    if isinstance(tree, Mapping):
        return {
            name: MASK if isinstance(value, str) and _SECRET_NAME.search(str(name)) else _public(value, secrets)
            for name, value in tree.items()
            if name not in LEFT_OUT
        }
    if isinstance(tree, list | tuple):
        return [_public(value, secrets) for value in tree]
    if isinstance(tree, Path):
        return _text(str(tree), secrets)
    return _text(tree, secrets) if isinstance(tree, str) else tree


def _text(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, MASK)
    text = _TOKEN.sub(MASK, _LOGIN.sub(f"{MASK}@", _QUERY.sub(rf"\1?{MASK}", text)))
    home = Path.home()
    return text if home == Path(home.anchor) else re.sub(rf"{re.escape(str(home))}(?=[/\\]|$)", "~", text)
