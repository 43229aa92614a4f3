"""Passwords in addresses, which reports and model cards must not repeat."""

from __future__ import annotations

import re

_USER_AND_PASSWORD = re.compile(r"(://[^:/@]*):[^@]*@")


def without_password(text: str) -> str:
    """The text, a password in an address such as ``postgresql://user:password@host/name`` hidden."""
    return _USER_AND_PASSWORD.sub(r"\1:***@", text)
