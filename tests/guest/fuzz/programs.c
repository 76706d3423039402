// SPDX-License-Identifier: GPL-2.0
/* The programs that the fuzzer runs: a few instructions each, loaded by bpf(2) alone. */
#include <sys/syscall.h>
#include <unistd.h>

#include "fuzz.h"

const int attach_types[ATTACH_TYPES] = {
	BPF_CGROUP_INET4_BIND,	      BPF_CGROUP_INET6_BIND,	    BPF_CGROUP_INET4_CONNECT,
	BPF_CGROUP_INET6_CONNECT,     BPF_CGROUP_UDP4_SENDMSG,	    BPF_CGROUP_UDP6_SENDMSG,
	BPF_CGROUP_UDP4_RECVMSG,      BPF_CGROUP_UDP6_RECVMSG,	    BPF_CGROUP_INET4_GETPEERNAME,
	BPF_CGROUP_INET6_GETPEERNAME, BPF_CGROUP_INET4_GETSOCKNAME, BPF_CGROUP_INET6_GETSOCKNAME,
};
int attaches_ipv4(int type)
{
	return attach_types[type] == BPF_CGROUP_INET4_BIND ||
	       attach_types[type] == BPF_CGROUP_INET4_CONNECT ||
	       attach_types[type] == BPF_CGROUP_UDP4_SENDMSG ||
	       attach_types[type] == BPF_CGROUP_UDP4_RECVMSG ||
	       attach_types[type] == BPF_CGROUP_INET4_GETPEERNAME ||
	       attach_types[type] == BPF_CGROUP_INET4_GETSOCKNAME;
}

long bpf(int cmd, void *attr, unsigned int size)
{
	return syscall(__NR_bpf, cmd, attr, size);
}

int create_map(int type, int key, int value, int entries, int flags, int btf)
{
	union bpf_attr attr = {
		.map_type = type,
		.key_size = key,
		.value_size = value,
		.max_entries = entries,
		.map_flags = flags,
		.btf_fd = btf,
		.btf_key_type_id = btf ? 1 : 0,
		.btf_value_type_id = btf ? 1 : 0,
	};

	return bpf(BPF_MAP_CREATE, &attr, sizeof(attr));
}

/* An sk_storage map wants BTF: one type, «int». Returns the map. */
int create_storage_map(void)
{
	static const struct {
		uint16_t magic;
		uint8_t version, flags;
		uint32_t header, type_off, type_len, str_off, str_len;
		uint32_t name, info, size, encoding;
		char strings[5];
	} __attribute__((packed)) btf = {
		0xeb9f, 1, 0, 24, 0, 16, 16, 5, 1, 1 << 24, 4, 1 << 24 | 32, "\0int",
	};
	union bpf_attr attr = {.btf = (uintptr_t)&btf, .btf_size = sizeof(btf)};
	int fd = bpf(BPF_BTF_LOAD, &attr, sizeof(attr)), map;

	if (fd < 0)
		return fd;
	map = create_map(BPF_MAP_TYPE_SK_STORAGE, 4, 4, 0, BPF_F_NO_PREALLOC, fd);
	close(fd);
	return map;
}

#define INSN(op, d, s, o, i) \
	((struct bpf_insn){.code = (op), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i)})
#define MOV_IMM(d, i) INSN(BPF_ALU64 | BPF_MOV | BPF_K, d, 0, 0, i)
#define MOV_REG(d, s) INSN(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define ADD_IMM(d, i) INSN(BPF_ALU64 | BPF_ADD | BPF_K, d, 0, 0, i)
#define LOAD(size, d, s, o) INSN(BPF_LDX | BPF_MEM | (size), d, s, o, 0)
#define STORE_REG(size, d, o, s) INSN(BPF_STX | BPF_MEM | (size), d, s, o, 0)
#define STORE_IMM(size, d, o, i) INSN(BPF_ST | BPF_MEM | (size), d, 0, o, i)
#define CALL(helper) INSN(BPF_JMP | BPF_CALL, 0, 0, 0, helper)
#define LOAD_MAP(d, fd) \
	INSN(BPF_LD | BPF_DW | BPF_IMM, d, BPF_PSEUDO_MAP_FD, 0, fd), INSN(0, 0, 0, 0, 0)
#define RETURN(i) MOV_IMM(BPF_REG_0, i), INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)

/*
 * Load a program of this kind; some helpers are not there for every attach type on every
 * kernel, and the program is a plain one then.
 */
int load_program(enum program_kind kind, int type, int storage, int array)
{
	int field = attaches_ipv4(type) ? offsetof(struct bpf_sock_addr, user_ip4)
					: offsetof(struct bpf_sock_addr, user_ip6);
	struct bpf_insn allow[] = {RETURN(1)};
	struct bpf_insn rewrite[] = {
		MOV_IMM(2, 0x0100007f),
		STORE_REG(BPF_W, 1, field, 2),
		LOAD(BPF_W, 3, 1, offsetof(struct bpf_sock_addr, user_port)),
		STORE_REG(BPF_W, 1, offsetof(struct bpf_sock_addr, user_port), 3),
		RETURN(1),
	};
	struct bpf_insn store[] = {
		LOAD(BPF_DW, 2, 1, offsetof(struct bpf_sock_addr, sk)),
		LOAD_MAP(1, storage),
		MOV_IMM(3, 0),
		MOV_IMM(4, BPF_SK_STORAGE_GET_F_CREATE),
		CALL(BPF_FUNC_sk_storage_get),
		INSN(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 3, 0),
		LOAD(BPF_W, 1, 0, 0),
		ADD_IMM(1, 1),
		STORE_REG(BPF_W, 0, 0, 1),
		RETURN(1),
	};
	struct bpf_insn chain[] = {
		MOV_REG(6, 1),
		CALL(BPF_FUNC_get_prandom_u32),
		MOV_REG(3, 0),
		INSN(BPF_ALU64 | BPF_AND | BPF_K, 3, 0, 0, 3),
		MOV_REG(1, 6),
		LOAD_MAP(2, array),
		CALL(BPF_FUNC_tail_call),
		RETURN(1),
	};
	struct bpf_insn setsockopt[] = {
		STORE_IMM(BPF_W, 10, -4, 5),
		MOV_IMM(2, 1 /* SOL_SOCKET */),
		MOV_IMM(3, 12 /* SO_PRIORITY */),
		MOV_REG(4, 10),
		ADD_IMM(4, -4),
		MOV_IMM(5, 4),
		CALL(BPF_FUNC_setsockopt),
		RETURN(1),
	};
	struct bpf_insn bind[] = {
		STORE_IMM(BPF_W, 10, -16, 2 /* AF_INET, any port */),
		STORE_IMM(BPF_W, 10, -12, 0x0100007f),
		STORE_IMM(BPF_W, 10, -8, 0),
		STORE_IMM(BPF_W, 10, -4, 0),
		MOV_REG(2, 10),
		ADD_IMM(2, -16),
		MOV_IMM(3, 16),
		CALL(BPF_FUNC_bind),
		RETURN(1),
	};
	struct {
		struct bpf_insn *insns;
		int size;
	} kinds[PROGRAM_KINDS] = {
		[ALLOW] = {allow, sizeof(allow)},
		[REWRITE] = {rewrite, sizeof(rewrite)},
		[STORE] = {store, sizeof(store)},
		[CHAIN] = {chain, sizeof(chain)},
		[SETSOCKOPT] = {setsockopt, sizeof(setsockopt)},
		[BIND] = {bind, sizeof(bind)},
	};
	union bpf_attr attr = {
		.prog_type = BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
		.expected_attach_type = attach_types[type],
		.insns = (uintptr_t)kinds[kind].insns,
		.insn_cnt = kinds[kind].size / sizeof(struct bpf_insn),
		.license = (uintptr_t) "GPL",
		.prog_name = "fuzz",
	};
	int fd = bpf(BPF_PROG_LOAD, &attr, sizeof(attr));

	if (fd < 0 && kind > CHAIN)
		return load_program(ALLOW, type, storage, array);
	return fd;
}
