// SPDX-License-Identifier: GPL-2.0
/* sock_ops: the life of a TCP connection, op by op. */
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/skbuff.h>
#include <linux/slab.h>
#include <linux/tcp.h>
#include <net/tcp.h>

#include "../bpfunit_testrun.h"
#include "../cgroup.h"
#include "../compat.h"
#include "../loop.h"
#include "../request.h"
#include "../sock.h"
#include "types.h"

#define TCPF_SENDING (TCPF_CONNECTED & ~TCPF_FIN_WAIT2)

enum op_packet {
	NO_PACKET, /* the kernel has none at hand */
	MAY_HAVE_PACKET, /* one that came in */
	MUST_HAVE_PACKET,
};

/*
 * In which states the kernel calls the op on a full socket, and what it has at hand. An
 * established socket may stand in for one on its way there: it then has the state that
 * the op is called in as long as the program runs.
 */
static const struct op {
	u32 states; /* TCPF_* */
	u8 earlier; /* the state that an established socket is put back into, or 0 */
	u8 args;
	u8 packet;
} ops[] = {
	[BPF_SOCK_OPS_TIMEOUT_INIT] = {TCPF_SYN_SENT, TCP_SYN_SENT},
	[BPF_SOCK_OPS_RWND_INIT] = {TCPF_SYN_SENT, TCP_SYN_SENT},
	[BPF_SOCK_OPS_TCP_CONNECT_CB] = {TCPF_SYN_SENT, TCP_SYN_SENT},
	[BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB] = {TCPF_ESTABLISHED, 0, 0, MAY_HAVE_PACKET},
	[BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB] = {TCPF_SYN_RECV, TCP_SYN_RECV, 0, MAY_HAVE_PACKET},
	[BPF_SOCK_OPS_NEEDS_ECN] = {TCPF_SYN_SENT, TCP_SYN_SENT},
	[BPF_SOCK_OPS_BASE_RTT] = {TCPF_CONNECTED},
	[BPF_SOCK_OPS_RTO_CB] = {TCPF_SENDING | TCPF_SYN_SENT | TCPF_SYN_RECV, 0, 3},
	[BPF_SOCK_OPS_RETRANS_CB] = {TCPF_SENDING | TCPF_SYN_SENT | TCPF_SYN_RECV, 0, 3},
	[BPF_SOCK_OPS_STATE_CB] = {~0, 0, 2},
	[BPF_SOCK_OPS_TCP_LISTEN_CB] = {TCPF_LISTEN},
	[BPF_SOCK_OPS_RTT_CB] = {TCPF_CONNECTED | TCPF_SYN_SENT | TCPF_SYN_RECV, 0, 2},
	[BPF_SOCK_OPS_PARSE_HDR_OPT_CB] = {TCPF_CONNECTED, 0, 0, MUST_HAVE_PACKET},
	[BPF_SOCK_OPS_HDR_OPT_LEN_CB] = {TCPF_CONNECTED | TCPF_SYN_SENT, 0, 1, MAY_HAVE_PACKET},
	[BPF_SOCK_OPS_WRITE_HDR_OPT_CB] = {TCPF_CONNECTED | TCPF_SYN_SENT, 0, 1, MUST_HAVE_PACKET},
};

/* Where tcp_set_state() goes from each state, on a full socket. */
static const u32 next_states[] = {
	[TCP_ESTABLISHED] = TCPF_FIN_WAIT1 | TCPF_CLOSE_WAIT | TCPF_CLOSE,
	[TCP_SYN_SENT] = TCPF_ESTABLISHED | TCPF_SYN_RECV | TCPF_CLOSE,
	[TCP_SYN_RECV] = TCPF_ESTABLISHED | TCPF_FIN_WAIT1 | TCPF_CLOSE_WAIT | TCPF_CLOSE,
	[TCP_FIN_WAIT1] = TCPF_FIN_WAIT2 | TCPF_CLOSING | TCPF_CLOSE,
	[TCP_FIN_WAIT2] = TCPF_CLOSE,
	[TCP_CLOSE_WAIT] = TCPF_LAST_ACK | TCPF_CLOSE,
	[TCP_LAST_ACK] = TCPF_CLOSE,
	[TCP_CLOSING] = TCPF_CLOSE,
	[TCP_LISTEN] = TCPF_CLOSE,
	[TCP_CLOSE] = TCPF_SYN_SENT,
};

struct run {
	struct bpf_prog *prog;
	struct sock *sk;
	const struct op *op;
	struct bpfunit_sock_ops in;
	struct payload payload;
	struct sk_buff *skb;
	struct bpf_sock_ops_kern crafted;
	struct bpf_sock_ops_kern kern;
	struct cgroup_run cgroup;
	struct loop loop;
	u32 retval;
	struct bpfunit_sock_ops_result *result; /* the payload behind it */
};

/* ---- the request ---- */

/* The room for options of a header: the kernel reserves words. */
static bool is_room(u32 bytes)
{
	return bytes && bytes <= MAX_TCP_OPTION_SPACE && bytes % 4 == 0;
}

/* A header of HDR_OPT_LEN_CB has not been written yet: only its flags are known. */
static int check_packet(const struct run *run)
{
	const struct tcphdr *header = run->payload.bytes;
	u32 size = run->payload.size, op = run->in.op;

	if (!size)
		return run->op->packet == MUST_HAVE_PACKET ? -EINVAL : 0;
	if (run->op->packet == NO_PACKET)
		return -EINVAL;
	if (size < sizeof(*header) || header->doff < 5 || __tcp_hdrlen(header) > size)
		return -EINVAL;
	if (op == BPF_SOCK_OPS_WRITE_HDR_OPT_CB &&
	    sizeof(*header) + run->in.option_room > __tcp_hdrlen(header))
		return -EINVAL;
	return 0;
}

static int check_request(struct run *run)
{
	const struct bpfunit_sock_ops *in = &run->in;
	bool has_room =
		in->op == BPF_SOCK_OPS_HDR_OPT_LEN_CB || in->op == BPF_SOCK_OPS_WRITE_HDR_OPT_CB;

	if (in->head.flags & ~BPFUNIT_SOCK_OPS_SET_CB_FLAGS ||
	    memchr_inv(in->reserved, 0, sizeof(in->reserved)))
		return -EINVAL;
	/* ops of newer kernels run without the socket's lock, and are another story */
	if (in->op >= ARRAY_SIZE(ops) || !ops[in->op].states)
		return -EOPNOTSUPP;
	run->op = &ops[in->op];
	if (memchr_inv(in->args + run->op->args, 0, (4 - run->op->args) * sizeof(__u32)))
		return -EINVAL;
	if (in->cb_flags & ~BPF_SOCK_OPS_ALL_CB_FLAGS)
		return -EINVAL;
	if (in->cb_flags && !(in->head.flags & BPFUNIT_SOCK_OPS_SET_CB_FLAGS))
		return -EINVAL;
	if (has_room ? !is_room(in->option_room) : in->option_room)
		return -EINVAL;
	/* without a packet the kernel asks for the sake of the MSS, and says so */
	if (has_room && (run->payload.size ? in->args[0] == BPF_WRITE_HDR_TCP_CURRENT_MSS
					   : in->args[0] != BPF_WRITE_HDR_TCP_CURRENT_MSS))
		return -EINVAL;
	if (has_room && in->args[0] > BPF_WRITE_HDR_TCP_SYNACK_COOKIE)
		return -EINVAL;
	return check_packet(run);
}

/* Whether the kernel calls the op on such a socket; needs the socket's lock. */
static int check_state(const struct run *run)
{
	const struct sock *sk = run->sk;
	const __u32 *args = run->in.args;
	int err = sock_check_tcp(sk);
	u32 state = sk->sk_state;

	if (err)
		return err;
	if (run->in.op == BPF_SOCK_OPS_STATE_CB) {
		if (state >= ARRAY_SIZE(next_states) || args[0] != state || args[1] > 31 ||
		    !(next_states[state] & 1 << args[1]))
			return -ENOTCONN;
		return 0;
	}
	if (run->op->earlier && state == TCP_ESTABLISHED)
		return 0;
	return 1 << state & run->op->states ? 0 : -ENOTCONN;
}

/* ---- the packet ---- */

/* How much of the packet the program sees: bpf_skops_init_skb() of each op. */
static u32 visible_bytes(const struct run *run)
{
	u32 header = __tcp_hdrlen(run->payload.bytes);

	switch (run->in.op) {
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		return 0;
	case BPF_SOCK_OPS_WRITE_HDR_OPT_CB:
		return header - run->in.option_room;
	default:
		return header;
	}
}

static void fill_packet(struct run *run)
{
	memcpy(run->skb->data, run->payload.bytes, run->payload.size);
}

/* A packet whose data begins at the TCP header, as on its way in before the data is queued. */
static int make_packet(struct run *run)
{
	const struct tcphdr *header = run->payload.bytes;
	struct sk_buff *skb;

	if (!run->payload.size)
		return 0;
	skb = alloc_skb(MAX_TCP_HEADER + run->payload.size, GFP_KERNEL_ACCOUNT);
	if (!skb)
		return -ENOMEM;
	skb_reserve(skb, MAX_TCP_HEADER);
	skb_reset_transport_header(skb);
	skb_put(skb, run->payload.size);
	TCP_SKB_CB(skb)->tcp_flags = ((const u8 *)header)[13];
	TCP_SKB_CB(skb)->seq = ntohl(header->seq);
	run->skb = skb;
	run->crafted.skb = skb;
	run->crafted.skb_data_end = skb->data + visible_bytes(run);
	return 0;
}

/* ---- the run ---- */

static __always_inline void rewind(void *data)
{
	struct run *run = data;

	run->kern = run->crafted;
	cgroup_rewind(&run->cgroup, 0);
	if (run->skb)
		fill_packet(run);
}

/*
 * The socket's lock keeps all away that act upon its state, so that it may be an earlier
 * one for the time of a slice.
 */
static void run_slice(struct loop *loop, void *data)
{
	struct run *run = data;
	u8 state = run->sk->sk_state;

	if (run->op->earlier)
		WRITE_ONCE(run->sk->sk_state, run->op->earlier);
	cgroup_enter(&run->cgroup, run->prog);
	run->retval = loop_slice(loop, run->prog, &run->kern, rewind, run);
	cgroup_leave(&run->cgroup);
	if (run->op->earlier)
		WRITE_ONCE(run->sk->sk_state, state);
}

static int pause_run(void *data)
{
	struct run *run = data;

	sock_yield(run->sk);
	return check_state(run);
}

static const struct loop_ops loop_ops = {.slice = run_slice, .pause = pause_run};

static void collect(struct run *run)
{
	struct bpfunit_sock_ops_result *result = run->result;

	memcpy(result->replylong, run->kern.replylong, sizeof(result->replylong));
	result->err = cgroup_errno(&run->cgroup, run->retval);
	result->cb_flags = tcp_sk(run->sk)->bpf_sock_ops_cb_flags;
	result->option_room = run->kern.remaining_opt_len;
	result->size = run->payload.size;
	if (run->skb)
		memcpy(result + 1, run->skb->data, run->payload.size);
}

static int run_locked(struct sock *sk, void *data)
{
	struct run *run = data;
	int err;

	run->sk = sk;
	err = check_state(run);
	if (err)
		return err;
	if (run->in.head.flags & BPFUNIT_SOCK_OPS_SET_CB_FLAGS)
		tcp_sk(sk)->bpf_sock_ops_cb_flags = run->in.cb_flags;
	run->crafted.sk = sk;
	run->crafted.op = run->in.op;
	run->crafted.is_fullsock = 1;
	set_locked_tcp_sock(&run->crafted);
	run->crafted.remaining_opt_len = run->in.option_room;
	memcpy(run->crafted.args, run->in.args, sizeof(run->crafted.args));
	err = loop_run(&run->loop, &loop_ops, run);
	if (!err)
		collect(run);
	return err;
}

static int run_request(struct run *run, const struct test_request *request)
{
	u32 size = sizeof(*run->result) + run->payload.size;
	int err = check_request(run);

	if (err)
		return err;
	run->result = kvzalloc(size, GFP_KERNEL_ACCOUNT);
	if (!run->result)
		return -ENOMEM;
	err = make_packet(run) ?: sock_run_tcp(run->in.head.sock, run_locked, run);
	if (!err) {
		const struct answer answer = {
			.retval = run->retval,
			.duration = loop_duration(&run->loop),
			.data = {run->result, size},
		};

		err = request_answer(request, &answer);
	}
	kfree_skb(run->skb);
	kvfree(run->result);
	return err;
}

int sock_ops_test_run(struct bpf_prog *prog, const union bpf_attr *kattr,
		      union bpf_attr __user *uattr)
{
	const struct test_request request = {kattr, uattr};
	struct run run = {.prog = prog, .loop.repeat = request_repeat(&request)};
	int err;

	err = request_read(&request, &run.in, sizeof(run.in), &run.payload, BPFUNIT_SOCK_OPS_MAX);
	if (err)
		return err;
	err = cgroup_begin(&run.cgroup, prog) ?: run_request(&run, &request);
	cgroup_end(&run.cgroup);
	kvfree(run.payload.bytes);
	return err;
}
