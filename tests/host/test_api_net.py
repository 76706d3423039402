"""Addresses, ports and endpoints, and how a wrong one is explained."""

from __future__ import annotations

import ctypes
import ipaddress
import socket
from typing import Any

import pytest

from bpfunit import IP, Endpoint, ip, ip4, ip6, port
from bpfunit.values.net import explain_difference


def stored(value: int) -> bytes:
    return bytes(ctypes.c_uint32(value))


def test_ip4_and_port_are_integers_whose_bytes_are_in_network_order() -> None:
    assert stored(ip4("10.96.0.1")) == socket.inet_aton("10.96.0.1")
    assert bytes(ctypes.c_uint16(port(0x1234))) == b"\x12\x34"


def test_ip6_is_four_words_in_network_order() -> None:
    assert b"".join(map(stored, ip6("fd00::1:2"))) == ipaddress.ip_address("fd00::1:2").packed


@pytest.mark.parametrize("wrong", [-1, 65536])
def test_port_out_of_range_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=r"out of range 0\.\.65535"):
        port(wrong)


def test_each_family_refuses_the_other() -> None:
    with pytest.raises(ValueError, match="is not an IPv4 address; use ip6"):
        ip4("::1")
    with pytest.raises(ValueError, match=r"v4-mapped is ::ffff:10\.0\.0\.1"):
        ip6("10.0.0.1")


@pytest.mark.parametrize(
    "same",
    [
        "10.0.0.1",
        ipaddress.ip_address("10.0.0.1"),
        b"\n\0\0\1",
        b"\n\0\0\1" + bytes(12),
        ip4("10.0.0.1"),
        IP("10.0.0.1"),
        (ctypes.c_uint32 * 4)(ip4("10.0.0.1"), 0, 0, 0),
    ],
)
def test_address_equals_every_form_of_itself(same: Any) -> None:
    assert ip("10.0.0.1") == same
    assert ip("10.0.0.2") != same


def test_mapped_address_is_not_its_ipv4_form() -> None:
    mapped = ip("::ffff:10.0.0.1")
    assert mapped != ip("10.0.0.1")
    assert mapped.mapped4 == "10.0.0.1"
    assert str(mapped) == "::ffff:10.0.0.1"
    assert ip("10.0.0.1").mapped4 is None


def test_endpoint_equals_text_and_tuple() -> None:
    endpoint = Endpoint("10.244.0.5", 8080)
    assert endpoint == "10.244.0.5:8080"
    assert endpoint == ("10.244.0.5", 8080)
    assert endpoint != "10.244.0.5:8081"
    assert endpoint != "10.244.0.5"
    assert endpoint != 7
    assert hash(endpoint) == hash(Endpoint.parse("10.244.0.5:8080"))


@pytest.mark.parametrize("text", ["10.96.0.1:80", "[fd00::1]:443", "[::ffff:10.0.0.1]:1"])
def test_endpoint_prints_as_it_is_written(text: str) -> None:
    assert str(Endpoint.parse(text)) == text


def test_long_form_of_an_ipv6_endpoint_is_the_same_endpoint() -> None:
    assert Endpoint.parse("[fd00:0:0::1]:80") == "[fd00::1]:80"


@pytest.mark.parametrize(
    "wrong", ["10.0.0.1", "fd00::1:80", "10.0.0.1:99999", "host:80", "", ("10.0.0.1",), None, 5]
)
def test_wrong_endpoint_shows_the_accepted_forms(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r'expected "10\.96\.0\.1:80", "\[fd00::1\]:80" or'):
        Endpoint.parse(wrong)


def explained(found: Any, expected: Any) -> str:
    return "\n".join(explain_difference(found, expected) or ["nothing to say"])


def test_difference_of_endpoints_spells_out_both() -> None:
    text = explained(Endpoint("10.0.0.1", 80), "10.0.0.1:8080")
    assert "got:      10.0.0.1:80" in text
    assert "expected: 10.0.0.1:8080" in text
    assert "the address is right, the port is 80 instead of 8080" in text


def test_swapped_bytes_are_named() -> None:
    assert "the port has its bytes swapped" in explained(
        Endpoint("10.0.0.1", 0x5000), ("10.0.0.1", 80)
    )
    assert "the address has its bytes swapped" in explained(Endpoint("1.0.0.10", 80), "10.0.0.1:80")


def test_expectation_on_the_left_is_still_the_expectation() -> None:
    assert "got:      10.0.0.1:80" in explained("10.0.0.2:80", Endpoint("10.0.0.1", 80))


def test_malformed_expectation_is_called_that() -> None:
    assert "it has no port" in explained(Endpoint("10.0.0.1", 80), "10.0.0.1")


def test_other_values_are_left_to_pytest() -> None:
    assert explain_difference(1, 2) is None
