"""The mutations of the hook's C source: each a small mistake that somebody could make.

A mutant names the test that guards its line. One whose effect nobody can see says why.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One edit of one file below ``bpf/``.

    Attributes:
        name: what goes wrong, in a few words joined by dashes.
        file: the file, relative to ``bpf/``.
        old: text that the edit replaces; its first occurrence behind ``after``.
        new: what it is replaced by.
        guard: the test that is expected to fail, ``file::test`` below ``tests/hook``; "" for an
            equivalent mutant.
        after: text in front of ``old``, to tell one occurrence from another.
        equivalent: why no test can see the difference; "" for the others.
    """

    name: str
    file: str
    old: str
    new: str
    guard: str = ""
    after: str = ""
    equivalent: str = ""


ADDRESS, MANAGE, STORAGE = "hook/address.h", "hook/manage.h", "hook/storage.h"
ROUTE, LOG, PROGRAMS = "hook/route.h", "hook/log.h", "hook.bpf.c"

CONNECT4, CONNECT6 = "int cgroup_connect4_prog", "int cgroup_connect6_prog"
SEND, RECEIVE = "int bpf_redirect_dns_send", "int bpf_restore_dns_recv"

_TRAFFIC = "test_traffic_control.py::test_"
_MANAGEMENT = "test_management.py::test_"
_DNAT = "test_dnat.py::test_"
_MEMORY = "test_original_destination.py::test_"
_STATE = "test_state.py::test_"
_TAIL = "test_tail_call.py::test_"
_DNS = "test_dns.py::test_"
_BALANCING = "test_load_balancing.py::test_"
_OBSERVE = "test_observe.py::test_"
_PROTOCOL = "test_protocol.py::test_"
_LOGGING = "test_log.py::test_"

ADDRESSES = [
    Mutant(
        "mapped-prefix-ignores-the-first-word",
        ADDRESS,
        "addr->ip6[0] == 0 && addr->ip6[1]",
        "addr->ip6[1]",
        _TRAFFIC + "only_v4_mapped_addresses_are_looked_up_as_ipv4",
    ),
    Mutant(
        "mapped-prefix-ignores-the-second-word",
        ADDRESS,
        "&& addr->ip6[1] == 0 &&",
        "&&",
        _TRAFFIC + "only_v4_mapped_addresses_are_looked_up_as_ipv4",
    ),
    Mutant(
        "mapped-prefix-in-host-order",
        ADDRESS,
        "addr->ip6[2] == bpf_htonl(0xffff)",
        "addr->ip6[2] == 0xffff",
        _DNAT + "v4_mapped_connection_gets_its_backend_v4_mapped",
    ),
    Mutant(
        "new-address-not-mapped",
        ADDRESS,
        "{0, 0, bpf_htonl(0xffff), ip4}",
        "{0, 0, 0, ip4}",
        _DNAT + "v4_mapped_connection_gets_its_backend_v4_mapped",
    ),
    Mutant(
        "new-address-mapped-in-host-order",
        ADDRESS,
        "{0, 0, bpf_htonl(0xffff), ip4}",
        "{0, 0, 0xffff, ip4}",
        _DNAT + "v4_mapped_connection_gets_its_backend_v4_mapped",
    ),
    Mutant(
        "frontend-key-keeps-the-mapped-form",
        ADDRESS,
        "if (dst->ipv6 && is_v4_mapped(&dst->addr))",
        "if (!dst->ipv6 && is_v4_mapped(&dst->addr))",
        _DNAT + "v4_mapped_connection_gets_its_backend_v4_mapped",
    ),
    Mutant(
        "frontend-key-of-the-wrong-word",
        ADDRESS,
        "{dst->addr.ip6[3], 0, 0, 0}",
        "{dst->addr.ip6[2], 0, 0, 0}",
        _DNAT + "v4_mapped_connection_gets_its_backend_v4_mapped",
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
        _MEMORY + "original_destination_is_remembered",
    ),
    Mutant(
        "destination-without-its-last-word",
        ADDRESS,
        "ctx->user_ip6[3]}",
        "0}",
        _MEMORY + "original_destination_is_remembered",
    ),
]

MANAGEMENT = [
    Mutant(
        "join-port-in-host-order",
        MANAGE,
        "dst->port == bpf_htons(CONTROL_PORT_JOIN)",
        "dst->port == CONTROL_PORT_JOIN",
        _MANAGEMENT + "joining_records_the_namespace_with_value_0",
    ),
    Mutant(
        "leave-port-off-by-one",
        MANAGE,
        "#define CONTROL_PORT_LEAVE 930",
        "#define CONTROL_PORT_LEAVE 931",
        _MANAGEMENT + "leaving_forgets_the_namespace",
    ),
    Mutant(
        "control-address-in-host-order",
        MANAGE,
        "dst->addr.ip4 == bpf_htonl(CONTROL_HOST)",
        "dst->addr.ip4 == CONTROL_HOST",
        _MANAGEMENT + "joining_records_the_namespace_with_value_0",
    ),
    Mutant(
        "control-address-ignores-the-first-word",
        MANAGE,
        "return dst->addr.ip6[0] == 0 && dst->addr.ip6[1]",
        "return dst->addr.ip6[1]",
        _MANAGEMENT + "the_control_ports_of_other_addresses_control_nothing",
    ),
    Mutant(
        "control-address-ignores-the-second-word",
        MANAGE,
        "dst->addr.ip6[1] == 0 && ",
        "",
        _MANAGEMENT + "the_control_ports_of_other_addresses_control_nothing",
    ),
    Mutant(
        "control-address-ignores-the-third-word",
        MANAGE,
        "dst->addr.ip6[2] == 0 &&",
        "",
        _MANAGEMENT + "the_control_ports_of_other_addresses_control_nothing",
    ),
    Mutant(
        "control-port-alone-decides",
        MANAGE,
        "if (!is_control_address(dst))",
        "if (0)",
        _MANAGEMENT + "the_control_ports_of_other_addresses_control_nothing",
    ),
    Mutant(
        "joined-with-value-1",
        MANAGE,
        "__u32 value = 0;",
        "__u32 value = 1;",
        _MANAGEMENT + "joining_records_the_namespace_with_value_0",
    ),
    Mutant(
        "joining-twice-refused",
        MANAGE,
        "&value, BPF_ANY)",
        "&value, BPF_NOEXIST)",
        _MANAGEMENT + "joining_twice_records_one_namespace",
    ),
    Mutant(
        "join-goes-on",
        MANAGE,
        "return true;",
        "return false;",
        _MANAGEMENT + "a_control_connection_is_not_steered",
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
        _MANAGEMENT + "leaving_forgets_the_namespace",
    ),
    Mutant(
        "managed-turned-round",
        MANAGE,
        "bpf_map_lookup_elem(&km_manage, &key) != NULL",
        "bpf_map_lookup_elem(&km_manage, &key) == NULL",
        _MANAGEMENT + "unmanaged_namespace_passes_untouched",
    ),
]

MEMORY = [
    Mutant(
        "storage-not-created",
        STORAGE,
        "BPF_SK_STORAGE_GET_F_CREATE",
        "0",
        _MEMORY + "original_destination_is_remembered",
    ),
    Mutant(
        "time-in-the-wrong-field",
        STORAGE,
        "storage->connect_ns = bpf_ktime_get_ns();",
        "storage->last_report_ns = bpf_ktime_get_ns();",
        _OBSERVE + "connect_records_a_monotonic_timestamp",
    ),
    Mutant(
        "time-of-the-first-connect-only",
        STORAGE,
        "storage->connect_ns = bpf_ktime_get_ns();",
        "if (!storage->connect_ns)\n\t\tstorage->connect_ns = bpf_ktime_get_ns();",
        _OBSERVE + "a_second_connect_records_its_own_time",
    ),
    Mutant(
        "via-waypoint-cleared",
        STORAGE,
        "if (via_waypoint)\n\t\tstorage->via_waypoint = true;",
        "storage->via_waypoint = via_waypoint;",
        _STATE + "via_waypoint_stays_when_a_later_connect_needs_none",
    ),
    Mutant(
        "via-waypoint-turned-round",
        STORAGE,
        "if (via_waypoint)",
        "if (!via_waypoint)",
        _MEMORY + "service_endpoint_is_not_via_waypoint",
    ),
    Mutant(
        "via-waypoint-behind-the-guard",
        STORAGE,
        "if (via_waypoint)\n\t\tstorage->via_waypoint = true;\n\tif (storage->has_set_ip)\n"
        "\t\treturn;",
        "if (storage->has_set_ip)\n\t\treturn;\n\tif (via_waypoint)\n"
        "\t\tstorage->via_waypoint = true;",
        _STATE + "via_waypoint_is_set_by_a_later_connect",
    ),
    Mutant(
        "second-connect-overwrites",
        STORAGE,
        "if (storage->has_set_ip)\n\t\treturn;",
        "",
        _MEMORY + "second_connect_keeps_the_first_destination",
    ),
    Mutant(
        "has-set-ip-never-set",
        STORAGE,
        "storage->has_set_ip = true;",
        "",
        _MEMORY + "original_destination_is_remembered",
    ),
    Mutant(
        "tuple-of-the-other-family",
        STORAGE,
        "if (dst->ipv6)",
        "if (!dst->ipv6)",
        _MEMORY + "ipv4_destination_is_remembered_in_the_ipv4_tuple",
    ),
    Mutant(
        "tuple-word-of-the-wrong-index",
        STORAGE,
        "daddr[2] = dst->addr.ip6[2]",
        "daddr[2] = dst->addr.ip6[3]",
        _MEMORY + "ipv6_destination_is_remembered_in_the_ipv6_tuple",
    ),
    Mutant(
        "tuple-word-not-copied",
        STORAGE,
        "storage->sk_tuple.ipv6.daddr[0] = dst->addr.ip6[0];",
        "",
        _MEMORY + "ipv6_destination_is_remembered_in_the_ipv6_tuple",
    ),
    Mutant(
        "ipv6-port-not-copied",
        STORAGE,
        "storage->sk_tuple.ipv6.dport = dst->port;",
        "",
        _MEMORY + "original_destination_is_remembered",
    ),
    Mutant(
        "ipv4-destination-kept-as-source",
        STORAGE,
        "storage->sk_tuple.ipv4.daddr",
        "storage->sk_tuple.ipv4.saddr",
        _MEMORY + "ipv4_destination_is_remembered_in_the_ipv4_tuple",
    ),
    Mutant(
        "remembered-port-in-host-order",
        STORAGE,
        "storage->sk_tuple.ipv4.dport = dst->port;",
        "storage->sk_tuple.ipv4.dport = bpf_ntohs(dst->port);",
        _MEMORY + "original_destination_is_remembered",
    ),
]

TRAFFIC = [
    Mutant(
        "waypoint-without-tail-call",
        ROUTE,
        "route->via_waypoint = true;",
        "route->via_waypoint = false;",
        _TAIL + "waypoint_connection_enters_its_familys_slot_once",
    ),
    Mutant(
        "waypoint-port-in-host-order",
        ROUTE,
        "route->port = port;",
        "route->port = bpf_ntohs(port);",
        _TRAFFIC + "direct_backend_with_waypoint_goes_to_its_waypoint",
    ),
    Mutant(
        "last-port-slot-left-out",
        ROUTE,
        "i < SERVICE_PORTS; i++",
        "i < SERVICE_PORTS - 1; i++",
        _DNAT + "each_port_slot_has_its_target_port",
    ),
    Mutant(
        "first-port-slot-left-out",
        ROUTE,
        "int i = 0; i < SERVICE_PORTS",
        "int i = 1; i < SERVICE_PORTS",
        _DNAT + "each_port_slot_has_its_target_port",
    ),
    Mutant(
        "last-of-equal-ports-wins",
        ROUTE,
        "int i = 0; i < SERVICE_PORTS; i++",
        "int i = SERVICE_PORTS - 1; i >= 0; i--",
        _DNAT + "first_of_equal_port_slots_wins",
    ),
    Mutant(
        "service-port-for-target-port",
        ROUTE,
        "*target_port = service->target_port[i];",
        "*target_port = service->service_port[i];",
        _DNAT + "address_and_port_are_rewritten",
    ),
    Mutant(
        "port-comparison-turned",
        ROUTE,
        "service->service_port[i] == port",
        "service->service_port[i] != port",
        _DNAT + "each_port_slot_has_its_target_port",
    ),
    Mutant(
        "backends-waypoint-dropped",
        ROUTE,
        "if (backend->waypoint_port)",
        "if (0)",
        _TRAFFIC + "backend_with_a_waypoint_port_goes_to_its_waypoint",
        after="route_to_backend",
    ),
    Mutant(
        "waypoint-address-for-backend",
        ROUTE,
        "route->addr = backend->addr;",
        "route->addr = backend->wp_addr;",
        _DNAT + "address_and_port_are_rewritten",
    ),
    Mutant(
        "unknown-port-remembered",
        ROUTE,
        "return NOT_OURS;",
        "return KEEP;",
        _TRAFFIC + "port_that_the_service_has_not_rewrites_nothing",
        after="service without a port",
    ),
    Mutant(
        "endpoint-index-from-0",
        ROUTE,
        "% count + 1",
        "% count",
        _BALANCING + "index_0_is_never_used",
    ),
    Mutant(
        "endpoint-index-beyond-the-count",
        ROUTE,
        "% count + 1",
        "% (count + 1) + 1",
        _BALANCING + "the_number_of_endpoints_bounds_the_choice",
    ),
    Mutant(
        "always-the-first-endpoint",
        ROUTE,
        "bpf_get_prandom_u32() % count + 1",
        "1 + 0 * count",
        _BALANCING + "endpoints_are_chosen_evenly",
    ),
    Mutant(
        "endpoint-of-priority-0-always",
        ROUTE,
        ".prio = prio,",
        ".prio = 0 * prio,",
        _TRAFFIC + "failover_policy_goes_to_the_first_priority_with_endpoints",
    ),
    Mutant(
        "endpoint-of-any-service",
        ROUTE,
        ".service_id = service_id,",
        ".service_id = 0 * service_id,",
        _DNAT + "address_and_port_are_rewritten",
    ),
    Mutant(
        "missing-endpoint-remembered",
        ROUTE,
        "return NOT_OURS;",
        "return KEEP;",
        _TRAFFIC + "missing_endpoint_rewrites_nothing",
        after="endpoint counted but missing",
    ),
    Mutant(
        "missing-backend-remembered",
        ROUTE,
        "return NOT_OURS;",
        "return KEEP;",
        _TRAFFIC + "missing_backend_rewrites_nothing",
        after="endpoint without its backend",
    ),
    Mutant(
        "last-priority-left-out",
        ROUTE,
        "i < PRIORITIES",
        "i < PRIORITIES - 1",
        _TRAFFIC + "failover_policy_goes_to_the_first_priority_with_endpoints",
    ),
    Mutant(
        "lowest-priority-first",
        ROUTE,
        "int i = 0; i < PRIORITIES; i++",
        "int i = PRIORITIES - 1; i >= 0; i--",
        _TRAFFIC + "failover_policy_goes_to_the_first_priority_with_endpoints",
    ),
    Mutant(
        "failover-without-endpoint-remembered",
        ROUTE,
        "return NOT_OURS;",
        "return KEEP;",
        _TRAFFIC + "failover_policy_without_any_endpoint_rewrites_nothing",
        after="no endpoint at any priority",
    ),
    Mutant(
        "half-a-waypoint-is-enough",
        ROUTE,
        "service->wp_addr.ip4 && service->waypoint_port",
        "service->wp_addr.ip4 || service->waypoint_port",
        _TRAFFIC + "service_with_half_a_waypoint_goes_to_its_endpoint",
    ),
    Mutant(
        "waypoint-address-by-its-last-word",
        ROUTE,
        "service->wp_addr.ip4 &&",
        "service->wp_addr.ip6[3] &&",
        _TRAFFIC + "service_with_a_waypoint_goes_to_it_whatever_the_policy",
    ),
    Mutant(
        "any-word-of-the-waypoint-address",
        ROUTE,
        "service->wp_addr.ip4 &&",
        "(service->wp_addr.ip4 || service->wp_addr.ip6[3]) &&",
        _TRAFFIC + "services_ipv6_waypoint_counts_by_its_first_word_only",
    ),
    Mutant(
        "random-without-endpoint-fails",
        ROUTE,
        "return KEEP;",
        "return NOT_OURS;",
        _TRAFFIC + "random_policy_without_endpoint_keeps_the_destination",
        after="random policy: no endpoint",
    ),
    Mutant(
        "strict-without-endpoint-remembered",
        ROUTE,
        "return NOT_OURS;",
        "return KEEP;",
        _TRAFFIC + "strict_policy_without_endpoint_rewrites_nothing",
        after="strict policy: no endpoint",
    ),
    Mutant(
        "strict-at-a-lower-priority",
        ROUTE,
        "service, 0, count, route)",
        "service, 1, count, route)",
        _TRAFFIC + "every_policy_goes_to_the_only_endpoint",
        after="case LB_STRICT_LOCALITY",
    ),
    Mutant(
        "strict-and-failover-swapped",
        ROUTE,
        "case LB_FAILOVER_LOCALITY:",
        "case LB_FAILOVER_LOCALITY + 1:",
        _TRAFFIC + "every_policy_goes_to_the_only_endpoint",
    ),
    Mutant(
        "unknown-policy-remembered",
        ROUTE,
        "return NOT_OURS;",
        "return KEEP;",
        _TRAFFIC + "unknown_policy_rewrites_nothing",
        after="unknown load balancing policy",
    ),
    Mutant(
        "endpoints-counted-at-priority-1",
        ROUTE,
        "service->prio_endpoint_count[0]",
        "service->prio_endpoint_count[1]",
        _TRAFFIC + "random_policy_ignores_lower_priorities",
    ),
    Mutant(
        "frontend-miss-remembered",
        ROUTE,
        "return NOT_OURS;",
        "return KEEP;",
        _TRAFFIC + "destination_that_is_no_frontend_passes_untouched",
        after="destination is no frontend",
    ),
    Mutant(
        "dangling-frontend-remembered",
        ROUTE,
        "return NOT_OURS;",
        "return KEEP;",
        _TRAFFIC + "frontend_of_neither_service_nor_backend_passes_untouched",
        after="frontend without its service",
    ),
    Mutant(
        "direct-backends-waypoint-dropped",
        ROUTE,
        "if (backend->waypoint_port)",
        "if (0)",
        _TRAFFIC + "direct_backend_with_waypoint_goes_to_its_waypoint",
        after="choose_route",
    ),
    Mutant(
        "direct-backend-not-remembered",
        ROUTE,
        "return KEEP;",
        "return NOT_OURS;",
        _TRAFFIC + "direct_backend_without_waypoint_keeps_its_address",
        after="choose_route",
    ),
]

PROGRAM_BODIES = [
    Mutant(
        "dns-port-in-host-order",
        PROGRAMS,
        "dst.port == bpf_htons(DNS_PORT)",
        "dst.port == DNS_PORT",
        _DNS + "question_goes_to_the_proxy_on_the_same_port",
        after=CONNECT4,
    ),
    Mutant(
        "dns-behind-the-protocol-check",
        PROGRAMS,
        "if (dst.port == bpf_htons(DNS_PORT)) {",
        "if (ctx->protocol == IPPROTO_TCP && dst.port == bpf_htons(DNS_PORT)) {",
        _DNS + "question_goes_to_the_proxy_on_the_same_port",
        after=CONNECT4,
    ),
    Mutant(
        "dns-goes-on",
        PROGRAMS,
        "redirect_dns(ctx, &dst);\n\t\treturn PROCEED;",
        "redirect_dns(ctx, &dst);",
        _DNS + "a_dns_service_is_not_steered_when_there_is_a_proxy",
        after=CONNECT4,
    ),
    Mutant(
        "dns-proxy-of-another-uid",
        PROGRAMS,
        "#define DNS_PROXY_UID 0",
        "#define DNS_PROXY_UID 1",
        _DNS + "question_goes_to_the_proxy_on_the_same_port",
    ),
    Mutant(
        "dns-question-not-remembered",
        PROGRAMS,
        "remember_destination(ctx, dst, false);",
        "",
        _DNS + "question_remembers_where_it_was_going",
    ),
    Mutant(
        "dns-question-via-waypoint",
        PROGRAMS,
        "remember_destination(ctx, dst, false);",
        "remember_destination(ctx, dst, true);",
        _DNS + "question_remembers_where_it_was_going",
    ),
    Mutant(
        "connect4-steers-udp",
        PROGRAMS,
        "if (ctx->protocol != IPPROTO_TCP)",
        "if (0)",
        _PROTOCOL + "udp_passes_untouched",
        after=CONNECT4,
    ),
    Mutant(
        "connect6-steers-udp",
        PROGRAMS,
        "if (ctx->protocol != IPPROTO_TCP)",
        "if (0)",
        _PROTOCOL + "udp_passes_untouched",
        after=CONNECT6,
    ),
    Mutant(
        "connect6-steers-unmanaged-namespaces",
        PROGRAMS,
        "|| !is_managed(ctx)",
        "",
        _MANAGEMENT + "unmanaged_namespace_passes_untouched",
        after=CONNECT6,
    ),
    Mutant(
        "connect4-not-observed",
        PROGRAMS,
        "observe_connect(ctx);",
        "",
        _OBSERVE + "connect_records_a_monotonic_timestamp",
        after=CONNECT4,
    ),
    Mutant(
        "connect6-observed-when-steered-only",
        PROGRAMS,
        "observe_connect(ctx);\n\tverdict = choose_route(&dst, &route);\n"
        "\tif (verdict == NOT_OURS)\n\t\treturn PROCEED;",
        "verdict = choose_route(&dst, &route);\n"
        "\tif (verdict == NOT_OURS)\n\t\treturn PROCEED;\n\tobserve_connect(ctx);",
        _OBSERVE + "connect_records_a_monotonic_timestamp",
        after=CONNECT6,
    ),
    Mutant(
        "kept-destination-not-remembered",
        PROGRAMS,
        "if (verdict == NOT_OURS)",
        "if (verdict != REWRITE)",
        _TRAFFIC + "direct_backend_without_waypoint_keeps_its_address",
        after=CONNECT6,
    ),
    Mutant(
        "rewritten-destination-remembered",
        PROGRAMS,
        "remember_destination(ctx, &dst, route.via_waypoint);",
        "if (verdict == REWRITE)\n\t\tdst.addr = route.addr;\n"
        "\tremember_destination(ctx, &dst, route.via_waypoint);",
        _MEMORY + "original_destination_is_remembered",
        after=CONNECT4,
    ),
    Mutant(
        "ipv4-address-not-rewritten",
        PROGRAMS,
        "ctx->user_ip4 = route.addr.ip4;",
        "",
        _DNAT + "address_and_port_are_rewritten",
        after=CONNECT4,
    ),
    Mutant(
        "ipv4-port-in-host-order",
        PROGRAMS,
        "ctx->user_port = route.port;",
        "ctx->user_port = bpf_ntohs(route.port);",
        _DNAT + "address_and_port_are_rewritten",
        after=CONNECT4,
    ),
    Mutant(
        "ipv6-port-not-rewritten",
        PROGRAMS,
        "ctx->user_port = route.port;",
        "",
        _DNAT + "address_and_port_are_rewritten",
        after=CONNECT6,
    ),
    Mutant(
        "ipv6-word-not-rewritten",
        PROGRAMS,
        "ctx->user_ip6[1] = route.addr.ip6[1];",
        "",
        _DNAT + "all_four_words_of_an_ipv6_address_are_rewritten",
    ),
    Mutant(
        "ipv6-word-of-the-wrong-index",
        PROGRAMS,
        "ctx->user_ip6[3] = route.addr.ip6[3];",
        "ctx->user_ip6[3] = route.addr.ip6[2];",
        _DNAT + "all_four_words_of_an_ipv6_address_are_rewritten",
    ),
    Mutant(
        "mapped-backend-mapped-again",
        PROGRAMS,
        "is_v4_mapped(&dst.addr) && !is_v4_mapped(&route.addr)",
        "is_v4_mapped(&dst.addr)",
        _DNAT + "backend_that_is_already_v4_mapped_is_not_mapped_again",
    ),
    Mutant(
        "native-ipv6-mapped",
        PROGRAMS,
        "is_v4_mapped(&dst.addr) && !is_v4_mapped(&route.addr)",
        "!is_v4_mapped(&route.addr)",
        _DNAT + "address_and_port_are_rewritten",
    ),
    Mutant(
        "mapped-from-the-wrong-word",
        PROGRAMS,
        "to_v4_mapped(route.addr.ip4)",
        "to_v4_mapped(route.addr.ip6[3])",
        _DNAT + "v4_mapped_connection_gets_its_backend_v4_mapped",
    ),
    Mutant(
        "connect4-at-the-wrong-index",
        PROGRAMS,
        "#define TAIL_CONNECT4 0",
        "#define TAIL_CONNECT4 1",
        _TAIL + "waypoint_connection_enters_its_familys_slot_once",
    ),
    Mutant(
        "connect6-at-the-wrong-index",
        PROGRAMS,
        "#define TAIL_CONNECT6 1",
        "#define TAIL_CONNECT6 0",
        _TAIL + "waypoint_connection_enters_its_familys_slot_once",
    ),
    Mutant(
        "tail-call-without-waypoint",
        PROGRAMS,
        "if (route.via_waypoint) {",
        "if (verdict == REWRITE) {",
        _TAIL + "an_endpoint_without_waypoint_makes_no_tail_call",
        after=CONNECT4,
    ),
    Mutant(
        "tail-call-before-the-port-is-rewritten",
        PROGRAMS,
        "ctx->user_port = route.port;\n\tif (route.via_waypoint) {",
        "if (route.via_waypoint) {",
        _TAIL + "next_program_sees_the_waypoint_as_destination",
        after=CONNECT4,
    ),
    Mutant(
        "sendmsg-of-unmanaged-namespaces",
        PROGRAMS,
        "|| !is_managed(ctx)",
        "",
        _DNS + "question_passes_untouched_in_an_unmanaged_namespace",
        after=SEND,
    ),
    Mutant(
        "sendmsg-of-every-port",
        PROGRAMS,
        "if (dst.port == bpf_htons(DNS_PORT))",
        "if (1)",
        _DNS + "other_ports_do_not_go_to_the_proxy",
        after=SEND,
    ),
    Mutant(
        "answers-of-unmanaged-namespaces",
        PROGRAMS,
        "|| !is_managed(ctx)",
        "",
        _DNS + "answer_passes_untouched_in_an_unmanaged_namespace",
        after=RECEIVE,
    ),
    Mutant(
        "answers-without-a-proxy",
        PROGRAMS,
        " || !dns_proxy()",
        "",
        _DNS + "answer_passes_untouched_without_a_proxy",
        after=RECEIVE,
    ),
    Mutant(
        "answers-of-every-port",
        PROGRAMS,
        "src.port != bpf_htons(DNS_PORT) || ",
        "",
        _DNS + "answer_from_another_port_passes_untouched",
        after=RECEIVE,
    ),
    Mutant(
        "answers-from-the-source-field",
        PROGRAMS,
        "storage->sk_tuple.ipv4.daddr",
        "storage->sk_tuple.ipv4.saddr",
        _DNS + "answer_comes_from_where_the_question_went",
        after=RECEIVE,
    ),
]

LOGGING = [
    Mutant(
        "log-level-shifted",
        LOG,
        "(level) <= bpf_log_level",
        "(level) < bpf_log_level",
        _LOGGING + "errors_are_logged_at_every_level",
    ),
    Mutant(
        "log-level-ignored",
        LOG,
        "if ((level) <= bpf_log_level)",
        "if ((level) <= LOG_DEBUG || bpf_log_level)",
        _LOGGING + "debug_lines_appear_at_the_debug_level_only",
    ),
    Mutant(
        "log-level-debug-by-default",
        LOG,
        "bpf_log_level = LOG_INFO",
        "bpf_log_level = LOG_DEBUG",
        _LOGGING + "the_default_level_is_info",
    ),
    Mutant(
        "log-record-without-its-size",
        LOG,
        ".ret = sizeof(text)",
        ".ret = 0 * sizeof(text)",
        _LOGGING + "a_record_says_the_size_of_its_text",
    ),
]

MUTANTS = [*ADDRESSES, *MANAGEMENT, *MEMORY, *TRAFFIC, *PROGRAM_BODIES, *LOGGING]
