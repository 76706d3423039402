"""Mutants of addresses, and of joining and leaving the mesh."""

from __future__ import annotations

from ..mutant import (
    ADDRESS,
    DNAT_TESTS,
    MANAGE,
    MANAGEMENT_TESTS,
    MEMORY_TESTS,
    TRAFFIC_TESTS,
    Mutant,
)

ADDRESSES = [
    Mutant(
        "mapped-prefix-ignores-the-first-word",
        ADDRESS,
        "addr->ip6[0] == 0 && addr->ip6[1]",
        "addr->ip6[1]",
        TRAFFIC_TESTS + "only_v4_mapped_addresses_are_looked_up_as_ipv4",
    ),
    Mutant(
        "mapped-prefix-ignores-the-second-word",
        ADDRESS,
        "&& addr->ip6[1] == 0 &&",
        "&&",
        TRAFFIC_TESTS + "only_v4_mapped_addresses_are_looked_up_as_ipv4",
    ),
    Mutant(
        "mapped-prefix-in-host-order",
        ADDRESS,
        "addr->ip6[2] == bpf_htonl(0xffff)",
        "addr->ip6[2] == 0xffff",
        DNAT_TESTS + "v4_mapped_connection_gets_its_backend_v4_mapped",
    ),
    Mutant(
        "new-address-not-mapped",
        ADDRESS,
        "{0, 0, bpf_htonl(0xffff), ip4}",
        "{0, 0, 0, ip4}",
        DNAT_TESTS + "v4_mapped_connection_gets_its_backend_v4_mapped",
    ),
    Mutant(
        "new-address-mapped-in-host-order",
        ADDRESS,
        "{0, 0, bpf_htonl(0xffff), ip4}",
        "{0, 0, 0xffff, ip4}",
        DNAT_TESTS + "v4_mapped_connection_gets_its_backend_v4_mapped",
    ),
    Mutant(
        "frontend-key-keeps-the-mapped-form",
        ADDRESS,
        "if (dst->ipv6 && is_v4_mapped(&dst->addr))",
        "if (!dst->ipv6 && is_v4_mapped(&dst->addr))",
        DNAT_TESTS + "v4_mapped_connection_gets_its_backend_v4_mapped",
    ),
    Mutant(
        "frontend-key-of-the-wrong-word",
        ADDRESS,
        "{dst->addr.ip6[3], 0, 0, 0}",
        "{dst->addr.ip6[2], 0, 0, 0}",
        DNAT_TESTS + "v4_mapped_connection_gets_its_backend_v4_mapped",
    ),
    Mutant(
        "family-not-asked-for-mapped-form",
        ADDRESS,
        "if (dst->ipv6 && is_v4_mapped(&dst->addr))",
        "if (is_v4_mapped(&dst->addr))",
        equivalent="an IPv4 destination has zeroes behind its first word, and so no mapped prefix",
    ),
    Mutant(
        "destination-words-swapped",
        ADDRESS,
        "ctx->user_ip6[1], ctx->user_ip6[2]",
        "ctx->user_ip6[2], ctx->user_ip6[1]",
        MEMORY_TESTS + "original_destination_is_remembered",
    ),
    Mutant(
        "destination-without-its-last-word",
        ADDRESS,
        "ctx->user_ip6[3]}",
        "0}",
        MEMORY_TESTS + "original_destination_is_remembered",
    ),
]


MANAGEMENT = [
    Mutant(
        "join-port-in-host-order",
        MANAGE,
        "dst->port == bpf_htons(CONTROL_PORT_JOIN)",
        "dst->port == CONTROL_PORT_JOIN",
        MANAGEMENT_TESTS + "joining_records_the_namespace_with_value_0",
    ),
    Mutant(
        "leave-port-off-by-one",
        MANAGE,
        "#define CONTROL_PORT_LEAVE 930",
        "#define CONTROL_PORT_LEAVE 931",
        MANAGEMENT_TESTS + "leaving_forgets_the_namespace",
    ),
    Mutant(
        "control-address-in-host-order",
        MANAGE,
        "dst->addr.ip4 == bpf_htonl(CONTROL_HOST)",
        "dst->addr.ip4 == CONTROL_HOST",
        MANAGEMENT_TESTS + "joining_records_the_namespace_with_value_0",
    ),
    Mutant(
        "control-address-ignores-the-first-word",
        MANAGE,
        "return dst->addr.ip6[0] == 0 && dst->addr.ip6[1]",
        "return dst->addr.ip6[1]",
        MANAGEMENT_TESTS + "the_control_ports_of_other_addresses_control_nothing",
    ),
    Mutant(
        "control-address-ignores-the-second-word",
        MANAGE,
        "dst->addr.ip6[1] == 0 && ",
        "",
        MANAGEMENT_TESTS + "the_control_ports_of_other_addresses_control_nothing",
    ),
    Mutant(
        "control-address-ignores-the-third-word",
        MANAGE,
        "dst->addr.ip6[2] == 0 &&",
        "",
        MANAGEMENT_TESTS + "the_control_ports_of_other_addresses_control_nothing",
    ),
    Mutant(
        "control-port-alone-decides",
        MANAGE,
        "if (!is_control_address(dst))",
        "if (0)",
        MANAGEMENT_TESTS + "the_control_ports_of_other_addresses_control_nothing",
    ),
    Mutant(
        "joined-with-value-1",
        MANAGE,
        "__u32 value = 0;",
        "__u32 value = 1;",
        MANAGEMENT_TESTS + "joining_records_the_namespace_with_value_0",
    ),
    Mutant(
        "joining-twice-refused",
        MANAGE,
        "&value, BPF_ANY)",
        "&value, BPF_NOEXIST)",
        MANAGEMENT_TESTS + "joining_twice_records_one_namespace",
    ),
    Mutant(
        "join-goes-on",
        MANAGE,
        "return true;",
        "return false;",
        MANAGEMENT_TESTS + "a_control_connection_is_not_steered",
        after="join_mesh(ctx);",
    ),
    Mutant(
        "leave-goes-on",
        MANAGE,
        "return true;",
        "return false;",
        after="leave_mesh(ctx);",
        equivalent="after leaving, the namespace is not managed, and the hook ends there anyway",
    ),
    Mutant(
        "leave-deletes-nothing",
        MANAGE,
        "if (bpf_map_delete_elem(&km_manage, &key))",
        "if (!bpf_map_lookup_elem(&km_manage, &key))",
        MANAGEMENT_TESTS + "leaving_forgets_the_namespace",
    ),
    Mutant(
        "managed-turned-round",
        MANAGE,
        "bpf_map_lookup_elem(&km_manage, &key) != NULL",
        "bpf_map_lookup_elem(&km_manage, &key) == NULL",
        MANAGEMENT_TESTS + "unmanaged_namespace_passes_untouched",
    ),
]
