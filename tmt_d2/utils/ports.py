"""Ports of addresses."""

from __future__ import annotations

from tmt_d2.errors import UserError


def check_port(option: str, given: object, port: str) -> None:
    """
    Raises:
        UserError: ``port``, part of the value ``given`` to ``option``, is invalid.
    """
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError("its port must be a whole number from 1 to 65535", key=option, value=given)
