"""A cgroup/connect4 program written with bcc: compiled, loaded and owned by bcc, run by bpfunit."""

from __future__ import annotations

import sys

import pytest

import bpfunit
from bpfunit import ip4, port

# Distributions install bcc for their own interpreter; a virtual environment does not look there.
DIST_PACKAGES = "/usr/lib/python3/dist-packages"

# bcc compiles with the host's LLVM, in its own process
pytestmark = [pytest.mark.guest, pytest.mark.needs(native=True)]

TEXT = rb"""
#include <uapi/linux/bpf.h>

struct endpoint {
    u32 address;
    u32 port;
};

BPF_HASH(services, u32, struct endpoint);

int connect4(struct bpf_sock_addr *ctx)
{
    u32 address = ctx->user_ip4;
    struct endpoint *endpoint = services.lookup(&address);

    if (!endpoint)
        return 1;
    if (!endpoint->port)
        return 0;
    ctx->user_ip4 = endpoint->address;
    ctx->user_port = endpoint->port;
    return 1;
}
"""


@pytest.fixture(scope="module")
def bcc_object():
    """Compile the text once; bcc unloads it when the module's tests are done."""
    sys.path.append(DIST_PACKAGES)
    import bcc

    sys.path.remove(DIST_PACKAGES)
    compiled = bcc.BPF(text=TEXT)
    yield bcc, compiled
    compiled.cleanup()


@pytest.fixture
def connect4(bcc_object):
    bcc, compiled = bcc_object
    attach_type = bcc.BPFAttachType.CGROUP_INET4_CONNECT
    function = compiled.load_func(b"connect4", bcc.BPF.CGROUP_SOCK_ADDR, attach_type=attach_type)
    return bpfunit.Program.from_fd(function.fd, "cgroup/connect4")


@pytest.fixture
def services(bcc_object):
    _, compiled = bcc_object
    table = compiled[b"services"]
    wrapped = bpfunit.Map.from_fd(table.get_fd(), table.Key, table.Leaf)
    yield wrapped
    wrapped.clear()


def test_an_unknown_address_proceeds_untouched(connect4, services):
    result = connect4.run("192.0.2.1:80")
    assert (result.retval, result.dst) == (1, "192.0.2.1:80")


def test_a_service_address_becomes_its_endpoint(connect4, services):
    services[ip4("10.96.0.1")] = {"address": ip4("10.244.0.5"), "port": port(8080)}
    result = connect4.run("10.96.0.1:80")
    assert (result.retval, result.dst) == (1, "10.244.0.5:8080")


def test_a_service_without_a_port_refuses_the_connection(connect4, services):
    services[ip4("10.96.0.1")] = {"address": ip4("10.244.0.5"), "port": 0}
    result = connect4.run("10.96.0.1:80")
    assert (result.retval, result.dst) == (0, "10.96.0.1:80")


def test_bcc_sees_what_bpfunit_wrote(bcc_object, services):
    _, compiled = bcc_object
    services[ip4("10.96.0.1")] = {"address": ip4("10.244.0.5"), "port": 0}
    [(key, value)] = compiled[b"services"].items()
    assert (key.value, value.address) == (ip4("10.96.0.1"), ip4("10.244.0.5"))
