"""What may leave this machine: no secret, wherever it stands, and nothing else is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.tracking.public import public

SECRET = "open-sesame"


@pytest.mark.parametrize(
    "tree",
    [
        {"storage": f"postgresql://me:{SECRET}@host:5432/db"},
        {"storage": f"postgresql+psycopg://me:half@{SECRET}@host/db"},
        {"storage": f"postgresql://host/db?user=me&password={SECRET}"},
        {"hub": {"token": SECRET}},
        {"api_key": SECRET},
        {"registry": [{"Password": SECRET}]},
        {"argv": [f"storage={SECRET}"]},
        {"code": {"commit": "abc", "diff": f"+ key = {SECRET}"}},
        {"note": f"see https://{SECRET}@host/ and more"},
    ],
    ids=str,
)
def test_no_secret_comes_through(tree: dict[str, object]) -> None:
    assert SECRET not in str(public(tree))


@pytest.mark.parametrize("token", ["hf_" + "a" * 34, "ghp_" + "b1" * 18, "sk-" + "c" * 40])
def test_what_looks_like_a_token_is_masked_under_any_name(token: str) -> None:
    assert token not in str(public({"prompt": f"my token is {token}, keep it"}))


def test_the_value_of_a_secret_variable_is_masked_wherever_it_turns_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", SECRET)
    assert public({"name": [f"run-{SECRET}-1"]}) == {"name": ["run-***-1"]}


def test_the_users_home_is_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert public({"path": "/home/somebody/models/a", "home": Path("/home/somebody")}) == {
        "path": "~/models/a",
        "home": "~",
    }
    assert public("/home/somebody-else/b") == "/home/somebody-else/b"


def test_a_home_that_is_the_root_leaves_paths_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    assert public("/models/a") == "/models/a"


def test_everything_else_stays_as_it_is() -> None:
    tree = {
        "max_new_tokens": 64,
        "n": None,
        "chat": True,
        "tokens": "all",
        "commit": "53800b350390826b3640f77020692029b9263efe",
        "storage": "sqlite:///outputs/study.db",
        "where": "grpc://host:8080",
        "prompt": "why? a=b, mail me@home",
        "list": [1, 2.5, "a1 m2"],
    }
    assert public(tree) == tree
