"""What of a configuration and a provenance may leave this machine: all but secrets, and where its user lives.

It knows neither W&B nor Hydra: plain trees in, plain trees out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MASK = "***"
LEFT_OUT = ("argv", "diff")  # command lines, which the configuration tells; code that nobody committed
_SECRET_NAME = re.compile(r"(^|[_.-])(token|password|passwd|secret|credentials?|(api_?|private_|access_)?key)$", re.I)
_LOGIN = re.compile(r"(?<=://)\S*@")  # up to the last @: a password may hold one
_QUERY = re.compile(r"(\S+://\S*?)\?\S*")
_TOKEN = re.compile(r"\b(hf_|gh[opsru]_|github_pat_|sk-|xox[abp]-|AKIA)[\w-]{12,}")
LEAST = 6  # letters of a variable's value that are looked for: shorter ones are in every other word


def public(tree: Any) -> Any:
    """`tree` without what is nobody's business.

    Masked are values whose name says that they are secret, logins and queries of addresses, what looks like a token of
    a well-known service, and the value of any environment variable with a secret's name, wherever it turns up. The
    user's home is `~`.
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
