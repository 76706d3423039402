// SPDX-License-Identifier: GPL-2.0
/*
 * The connect hook's neighbours in the mesh. The hook chooses where a connection goes;
 * mesh_sockops follows it from its SYN to its end, and mesh_sk_msg tells a waypoint where it was
 * going. The three speak to each other through the socket's storage.
 *
 * One object for every kernel from 5.10.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "mesh/encode.h"
#include "mesh/follow.h"
#include "mesh/maps.h"

char _license[] SEC("license") = "GPL";

SEC("sockops")
int mesh_sockops(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk) /* of a connection that is not accepted yet: there is nothing to follow */
		return 1;
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		on_connect(ctx, sk);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		on_connected(ctx, sk);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		on_accepted(ctx, sk);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] == BPF_TCP_CLOSE)
			on_closed(ctx);
		break;
	}
	return 1;
}

/* Sees what the sockets of km_sockhash send. */
SEC("sk_msg")
int mesh_sk_msg(struct sk_msg_md *msg)
{
	struct sock_storage_data *storage = bpf_sk_storage_get(&km_sockstorage, msg->sk, NULL, 0);
	bool done;

	if (!storage || !storage->via_waypoint || storage->has_encoded)
		return SK_PASS;
	if (msg->family == AF_INET)
		done = put_destination4(msg, storage);
	else
		done = put_destination6(msg, storage);
	if (!done) {
		/* the waypoint would take the message's own bytes for the destination */
		log_error("cannot tell a waypoint where a connection was going: message dropped");
		return SK_DROP;
	}
	storage->has_encoded = true;
	return SK_PASS;
}
