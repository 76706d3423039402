"""Values as one types them in a shell: numbers, addresses, JSON."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

from bpfunit.errors import BpfunitError


class ValueSyntaxError(BpfunitError):
    """An option's value that cannot be read; the message states the accepted form."""


def parse_value(text: str) -> Any:
    """Read a value: a number (also 0x…), JSON, true or false, else a string.

    Args:
        text: for example ``7``, ``0x1f``, ``10.96.0.1``, ``{"addr": "10.96.0.1"}`` or ``[1, 2]``.

    Raises:
        ValueSyntaxError: it starts like JSON and is none.
    """
    text = text.strip()
    try:
        return int(text, 0)
    except ValueError:
        pass
    if text[:1] in tuple('{["') or text in ("true", "false"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueSyntaxError(
                f"read value {text!r}: {error.msg.lower()} at column {error.colno}; "
                "expected a number, an address, or JSON; quote it for the shell: '{\"a\": 1}'"
            ) from error
    return text


def with_addresses(value: Any) -> Any:
    """Replace every string that is an IP address by what fits an address field of any width."""
    from bpfunit import ip

    if isinstance(value, dict):
        return {key: with_addresses(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_addresses(item) for item in value]
    if isinstance(value, str):
        try:
            ipaddress.ip_address(value)
        except ValueError:
            return value
        return ip(value)
    return value


def parse_map_entry(text: str) -> tuple[str, Any, Any]:
    """Read ``NAME:KEY=VALUE`` into the map's name, the key and the value.

    Raises:
        ValueSyntaxError: a part is missing.
    """
    name, colon, rest = text.partition(":")
    key, equals, value = rest.partition("=")
    if not (name and colon and key and equals and value):
        raise ValueSyntaxError(
            f"read map entry {text!r}: expected NAME:KEY=VALUE, "
            'for example frontends:10.96.0.1=7 or \'hosts:{"id": 1}={"port": 80}\''
        )
    return name, parse_value(key), parse_value(value)


def parse_map_type(text: str) -> tuple[str, list[str]]:
    """Read ``NAME=KEY_TYPE,VALUE_TYPE`` into the map's name and its two types.

    Raises:
        ValueSyntaxError: a part is missing.
    """
    name, _, types = text.partition("=")
    pair = [part.strip() for part in types.split(",")]
    if not name or len(pair) != 2 or not all(pair):
        raise ValueSyntaxError(
            f"read map type {text!r}: expected NAME=KEY_TYPE,VALUE_TYPE with names of C types, "
            "for example km_frontend=frontend_key,frontend_value"
        )
    return name, pair


def parse_global(text: str) -> tuple[str, Any]:
    """Read ``NAME=VALUE`` into the variable's name and value.

    Raises:
        ValueSyntaxError: a part is missing.
    """
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueSyntaxError(
            f"read global {text!r}: expected NAME=VALUE, for example bpf_log_level=3"
        )
    return name, parse_value(value)
