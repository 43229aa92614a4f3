"""What is shown and written down names no password."""

from __future__ import annotations

import pytest
from sqlalchemy import URL

from search.terminal.command import redact_password


@pytest.mark.parametrize("password", ["secret", "se:cret", "se/cret", "s", "", "sécret#?"])
@pytest.mark.parametrize("user", ["user", "", "us.er"])
@pytest.mark.parametrize("prefix", ["", "--storage="])
def test_a_password_is_hidden(prefix: str, user: str, password: str) -> None:
    address = f"{prefix}postgresql://{user}:{password}@host:5432/name"
    assert redact_password(address) == f"{prefix}postgresql://{user}:***@host:5432/name"


def test_a_password_as_sqlalchemy_quotes_it() -> None:
    url = URL.create("postgresql", "us er", "a@b/c:d %", "host", 5432, "name")
    assert redact_password(url.render_as_string(hide_password=False)) == url.render_as_string()


@pytest.mark.parametrize(
    "text",
    ["postgresql://user@host:5432/name", "grpc://host:13000", "runs/a:b@c.journal", "60%"],
)
def test_what_has_no_password_stays(text: str) -> None:
    assert redact_password(text) == text
