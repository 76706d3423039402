"""Mutants of what is remembered of a socket, and of the log."""

from __future__ import annotations

from ..mutant import (
    LOG,
    LOGGING_TESTS,
    MEMORY_TESTS,
    OBSERVE_TESTS,
    STATE_TESTS,
    STORAGE,
    Mutant,
)

MEMORY = [
    Mutant(
        "storage-not-created",
        STORAGE,
        "BPF_SK_STORAGE_GET_F_CREATE",
        "0",
        MEMORY_TESTS + "original_destination_is_remembered",
    ),
    Mutant(
        "time-in-the-wrong-field",
        STORAGE,
        "storage->connect_ns = bpf_ktime_get_ns();",
        "storage->last_report_ns = bpf_ktime_get_ns();",
        OBSERVE_TESTS + "connect_records_a_monotonic_timestamp",
    ),
    Mutant(
        "time-of-the-first-connect-only",
        STORAGE,
        "storage->connect_ns = bpf_ktime_get_ns();",
        "if (!storage->connect_ns)\n\t\tstorage->connect_ns = bpf_ktime_get_ns();",
        OBSERVE_TESTS + "a_second_connect_records_its_own_time",
    ),
    Mutant(
        "via-waypoint-cleared",
        STORAGE,
        "if (via_waypoint)\n\t\tstorage->via_waypoint = true;",
        "storage->via_waypoint = via_waypoint;",
        STATE_TESTS + "via_waypoint_stays_when_a_later_connect_needs_none",
    ),
    Mutant(
        "via-waypoint-turned-round",
        STORAGE,
        "if (via_waypoint)",
        "if (!via_waypoint)",
        MEMORY_TESTS + "service_endpoint_is_not_via_waypoint",
    ),
    Mutant(
        "via-waypoint-behind-the-guard",
        STORAGE,
        "if (via_waypoint)\n\t\tstorage->via_waypoint = true;\n\tif (storage->has_set_ip)\n"
        "\t\treturn;",
        "if (storage->has_set_ip)\n\t\treturn;\n\tif (via_waypoint)\n"
        "\t\tstorage->via_waypoint = true;",
        STATE_TESTS + "via_waypoint_is_set_by_a_later_connect",
    ),
    Mutant(
        "second-connect-overwrites",
        STORAGE,
        "if (storage->has_set_ip)\n\t\treturn;",
        "",
        MEMORY_TESTS + "second_connect_keeps_the_first_destination",
    ),
    Mutant(
        "has-set-ip-never-set",
        STORAGE,
        "storage->has_set_ip = true;",
        "",
        MEMORY_TESTS + "original_destination_is_remembered",
    ),
    Mutant(
        "tuple-of-the-other-family",
        STORAGE,
        "if (dst->ipv6)",
        "if (!dst->ipv6)",
        MEMORY_TESTS + "ipv4_destination_is_remembered_in_the_ipv4_tuple",
    ),
    Mutant(
        "tuple-word-of-the-wrong-index",
        STORAGE,
        "daddr[2] = dst->addr.ip6[2]",
        "daddr[2] = dst->addr.ip6[3]",
        MEMORY_TESTS + "ipv6_destination_is_remembered_in_the_ipv6_tuple",
    ),
    Mutant(
        "tuple-word-not-copied",
        STORAGE,
        "storage->sk_tuple.ipv6.daddr[0] = dst->addr.ip6[0];",
        "",
        MEMORY_TESTS + "ipv6_destination_is_remembered_in_the_ipv6_tuple",
    ),
    Mutant(
        "ipv6-port-not-copied",
        STORAGE,
        "storage->sk_tuple.ipv6.dport = dst->port;",
        "",
        MEMORY_TESTS + "original_destination_is_remembered",
    ),
    Mutant(
        "ipv4-destination-kept-as-source",
        STORAGE,
        "storage->sk_tuple.ipv4.daddr",
        "storage->sk_tuple.ipv4.saddr",
        MEMORY_TESTS + "ipv4_destination_is_remembered_in_the_ipv4_tuple",
    ),
    Mutant(
        "remembered-port-in-host-order",
        STORAGE,
        "storage->sk_tuple.ipv4.dport = dst->port;",
        "storage->sk_tuple.ipv4.dport = bpf_ntohs(dst->port);",
        MEMORY_TESTS + "original_destination_is_remembered",
    ),
]


LOGGING = [
    Mutant(
        "log-level-shifted",
        LOG,
        "(level) <= bpf_log_level",
        "(level) < bpf_log_level",
        LOGGING_TESTS + "errors_are_logged_at_every_level",
    ),
    Mutant(
        "log-level-ignored",
        LOG,
        "if ((level) <= bpf_log_level)",
        "if ((level) <= LOG_DEBUG || bpf_log_level)",
        LOGGING_TESTS + "debug_lines_appear_at_the_debug_level_only",
    ),
    Mutant(
        "log-level-debug-by-default",
        LOG,
        "bpf_log_level = LOG_INFO",
        "bpf_log_level = LOG_DEBUG",
        LOGGING_TESTS + "the_default_level_is_info",
    ),
    Mutant(
        "log-record-without-its-size",
        LOG,
        ".ret = sizeof(text)",
        ".ret = 0 * sizeof(text)",
        LOGGING_TESTS + "a_record_says_the_size_of_its_text",
    ),
]
