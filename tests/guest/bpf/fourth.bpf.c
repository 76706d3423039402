// SPDX-License-Identifier: GPL-2.0
/* Instructions of -mcpu=v4 (RFC 9669; Linux 6.6), each as its eight bytes in little-endian order,
 * since older assemblers do not know them. Each takes r2, which holds a value or points at it, and
 * gives r1.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

long result;

#define PROGRAM(name, code, number, in)                             \
	SEC("?cgroup/connect4")                                     \
	int name(struct bpf_sock_addr *ctx __attribute__((unused))) \
	{                                                           \
		volatile long value = number;                       \
		long out;                                           \
                                                                    \
		asm volatile("r2 = %[from]\n"                       \
			     "r1 = r2\n" code "\n"                  \
			     "%[to] = r1\n"                         \
			     : [to] "=r"(out)                       \
			     : [from] "r"(in)                       \
			     : "r1", "r2", "memory");               \
		result = out;                                       \
		return 1;                                           \
	}

PROGRAM(load_s8, ".8byte 0x2191", 0x80, &value)
PROGRAM(load_s16, ".8byte 0x2189", 0x8000, &value)
PROGRAM(load_s32, ".8byte 0x2181", 0x80000000L, &value)
PROGRAM(move_s8, ".8byte 0x0821bf", 0xfe, value)
PROGRAM(move_s16, ".8byte 0x1021bf", 0xfffe, value)
PROGRAM(move_s32, ".8byte 0x2021bf", 0xfffffffeL, value)
PROGRAM(move_s8_to_32_bits, ".8byte 0x0821bc", 0xfe, value)
PROGRAM(swap_16, ".8byte 0x10000001d7", 0x1234, value)
PROGRAM(swap_64, ".8byte 0x40000001d7", 0x1122334455667788L, value)
PROGRAM(far_jump, "if r2 == 0 goto +1\n.8byte 0x100000006\nr1 = 0", 5, value)
PROGRAM(signed_division, ".8byte 0x200010137", -7, value)
PROGRAM(signed_modulo, ".8byte 0x200010197", -7, value)
