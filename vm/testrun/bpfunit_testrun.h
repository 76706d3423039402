/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * What the module adds to the interface of BPF_PROG_TEST_RUN.
 *
 * Types whose UAPI context has no room for a descriptor take their input by data_in: a
 * header of the type, and a payload behind it. Fields that are called reserved, and bits
 * of flags that have no name here, must be 0. All numbers are in the machine's own byte
 * order. What each field does is written in docs/module-types.md.
 */
#ifndef BPFUNIT_TESTRUN_H
#define BPFUNIT_TESTRUN_H

#include <linux/types.h>

#define BPFUNIT_TESTRUN_VERSION 1

/* In data_out, where the caller asks for it; the results of other types begin with it. */
struct bpfunit_result {
	/*
	 * What the hook would hand to the system call: 0, or a negative errno. It is the
	 * program's verdict together with what it set by bpf_set_retval().
	 */
	__s32 err;
};

/* At the start of data_in. */
struct bpfunit_head {
	__u32 version; /* BPFUNIT_TESTRUN_VERSION */
	__u32 flags; /* BPFUNIT_<type>_* */
	__u32 sock; /* descriptor of the socket */
	__u32 reserved;
};

/* ---- sk_msg: the payload is the message ---- */

#define BPFUNIT_SK_MSG_SHARED (1 << 0) /* the pages are somebody else's, as after sendfile(2) */

#define BPFUNIT_SK_MSG_FRAGMENTS 16
#define BPFUNIT_SK_MSG_MAX 65536 /* bytes of payload */

struct bpfunit_sk_msg {
	struct bpfunit_head head;
	/* lengths in order, which add up to the payload; none for one fragment of all of it */
	__u32 fragments[BPFUNIT_SK_MSG_FRAGMENTS];
};

enum bpfunit_sk_msg_verdict {
	BPFUNIT_SK_MSG_DROP,
	BPFUNIT_SK_MSG_PASS,
	BPFUNIT_SK_MSG_REDIRECT,
};

/* In data_out; the bytes of the message follow. */
struct bpfunit_sk_msg_result {
	__s32 err; /* -EACCES for a drop */
	__u32 verdict; /* enum bpfunit_sk_msg_verdict */
	__u32 size; /* bytes of the message */
	__u32 apply_bytes;
	__u32 cork_bytes;
	__u32 ingress; /* 1: redirected to the receive queue of the target */
	__u64 target_cookie; /* SO_COOKIE of the target, 0 while nobody has asked for it */
	__u64 target_inode; /* st_ino of the target's descriptor */
};

/* ---- sock_ops: the payload is a TCP header with options and data, or nothing ---- */

#define BPFUNIT_SOCK_OPS_SET_CB_FLAGS (1 << 0) /* cb_flags is what the socket has before */

#define BPFUNIT_SOCK_OPS_MAX 2048 /* bytes of payload */

struct bpfunit_sock_ops {
	struct bpfunit_head head;
	__u32 op; /* BPF_SOCK_OPS_* */
	__u32 args[4];
	__u32 cb_flags; /* BPF_SOCK_OPS_*_CB_FLAG */
	__u32 option_room; /* bytes; for HDR_OPT_LEN_CB and WRITE_HDR_OPT_CB */
	__u32 reserved[5];
};

/* In data_out; the payload as the program left it follows. */
struct bpfunit_sock_ops_result {
	__s32 err; /* -EPERM when the program returned 0: the kernel ignores the reply */
	__u32 replylong[4]; /* reply is the first */
	__u32 cb_flags; /* of the socket afterwards */
	__u32 option_room; /* what the program left of it */
	__u32 size; /* bytes of the payload */
};

/* ---- sk_skb: the payload is what came in, without headers ---- */

#define BPFUNIT_SK_SKB_MAX 65536 /* bytes of payload */

enum bpfunit_sk_skb_hook {
	BPFUNIT_SK_SKB_PARSER = 1,
	BPFUNIT_SK_SKB_VERDICT = 2,
};

struct bpfunit_sk_skb {
	struct bpfunit_head head;
	__u32 hook; /* enum bpfunit_sk_skb_hook */
	__u32 linear; /* bytes in front that lie where data and data_end point; usually none do */
	__u32 priority;
	__u32 reserved[5];
};

enum bpfunit_sk_skb_verdict {
	BPFUNIT_SK_SKB_DROP,
	BPFUNIT_SK_SKB_PASS,
	BPFUNIT_SK_SKB_REDIRECT,
	BPFUNIT_SK_SKB_PARSED, /* by a parser: retval is a length, or a negative errno */
};

/* In data_out; the bytes follow. */
struct bpfunit_sk_skb_result {
	__s32 err; /* 0: nobody is told */
	__u32 verdict; /* enum bpfunit_sk_skb_verdict */
	__u32 size; /* bytes that follow */
	__u32 ingress; /* 1: redirected to the receive queue of the target */
	__u32 priority;
	__u32 tc_index;
	__u64 target_cookie; /* SO_COOKIE of the target, 0 while nobody has asked for it */
	__u64 target_inode; /* st_ino of the target's descriptor */
};

/* ---- cgroup_sockopt: the payload is the value of the option ---- */

#define BPFUNIT_SOCKOPT_MAX 4096 /* bytes of the value, and of the caller's buffer */

struct bpfunit_sockopt {
	struct bpfunit_head head;
	__s32 level;
	__s32 optname;
	__u32 room; /* getsockopt: bytes of the caller's buffer */
	__s32 retval; /* getsockopt: what the kernel answered, 0 or a negative errno */
	__u32 reserved[4];
};

enum bpfunit_sockopt_action {
	BPFUNIT_SOCKOPT_KEEP, /* the kernel's, or the caller's, own value */
	BPFUNIT_SOCKOPT_REPLACE, /* the first optlen of the bytes that follow instead */
	BPFUNIT_SOCKOPT_BYPASS, /* setsockopt: the call ends with 0, and the kernel does nothing */
};

/* In data_out; the bytes between optval and optval_end follow, as the program left them. */
struct bpfunit_sockopt_result {
	__s32 err; /* what the hook hands to the system call */
	__s32 level; /* these as the program left them */
	__s32 optname;
	__s32 optlen;
	__s32 retval;
	__u32 action; /* enum bpfunit_sockopt_action */
	__u32 size; /* bytes that follow */
	__u32 reserved;
};

/* ---- cgroup_sock: the socket is the context, and there is no payload ---- */

struct bpfunit_sock {
	struct bpfunit_head head; /* flags are 0 */
};

/* In data_out: what the program left in the socket. */
struct bpfunit_sock_result {
	__s32 err; /* what the hook hands to socket(2) or bind(2) */
	__u32 bound_dev_if;
	__u32 mark;
	__u32 priority;
};

/* ---- cgroup_sysctl: the payload is the name, the current value and the new one ---- */

#define BPFUNIT_SYSCTL_WRITE (1 << 0) /* it is written, else read */

#define BPFUNIT_SYSCTL_NAME_MAX 256 /* bytes of the name */
#define BPFUNIT_SYSCTL_DEPTH_MAX 16 /* parts of the name */
#define BPFUNIT_SYSCTL_VALUE_MAX 4096 /* bytes of each value; programs see no more */

struct bpfunit_sysctl {
	struct bpfunit_head head; /* sock is 0 */
	__u32 name_size; /* bytes of each part of the payload */
	__u32 current_size; /* 0: the kernel could not read it */
	__u32 new_size; /* 0 for a read */
	__u32 reserved;
	__s64 position; /* of the caller in the file */
};

/* In data_out; the new value follows, as the program left it. */
struct bpfunit_sysctl_result {
	__s32 err; /* what the hook hands to the system call */
	__u32 updated; /* 1: the program has put another new value in place */
	__u32 size; /* bytes of the new value */
	__u32 reserved;
	__s64 position; /* as the program left it */
};

/* ---- sk_reuseport: the payload is a packet from its IP header on, or nothing ---- */

#define BPFUNIT_SK_REUSEPORT_MIGRATE (1 << 0) /* migrating is a descriptor */

#define BPFUNIT_SK_REUSEPORT_MAX 4096 /* bytes of the packet */

struct bpfunit_sk_reuseport {
	struct bpfunit_head head; /* sock is one of the group */
	__u32 transport; /* bytes of the packet in front of its TCP or UDP header */
	__u32 hash; /* of the packet's addresses and ports */
	__u32 migrating; /* the connection whose listener goes away */
	__u32 reserved;
};

enum bpfunit_sk_reuseport_verdict {
	BPFUNIT_SK_REUSEPORT_DROP,
	BPFUNIT_SK_REUSEPORT_HASH, /* the program chose none: the kernel takes one by the hash */
	BPFUNIT_SK_REUSEPORT_SELECT,
};

/* In data_out. */
struct bpfunit_sk_reuseport_result {
	__s32 err; /* -ECONNREFUSED for a drop */
	__u32 verdict; /* enum bpfunit_sk_reuseport_verdict */
	__u64 target_cookie; /* SO_COOKIE of the socket, 0 while nobody has asked for it */
	__u64 target_inode; /* st_ino of its descriptor */
};

/* ---- kprobe and tracepoint: the context is ctx_in, and this may be left out ---- */

struct bpfunit_tracing {
	struct bpfunit_head head; /* flags and sock are 0 */
	__u64 cookie; /* what bpf_get_attach_cookie() returns, where the kernel has it */
};

#endif
