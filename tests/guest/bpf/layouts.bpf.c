// SPDX-License-Identifier: GPL-2.0
/* Every kind of C type that BTF can describe, for the tests of types made from it. */
#include <linux/types.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct ip_addr {
	union {
		__u32 ip4;
		__u32 ip6[4];
	};
};

typedef struct {
	struct ip_addr addr;
} __attribute__((packed)) frontend_key;

struct unpacked {
	__u8 a;
	__u64 b;
	__u16 c;
	__u8 d;
};

struct packed {
	__u8 a;
	__u64 b;
	__u16 c;
	__u8 d;
} __attribute__((packed));

struct bits {
	__u32 low : 3;
	__s32 negative : 5;
	__u64 wide : 40;
	__u8 after;
	struct {
		__u32 inner : 4;
		__u32 last : 4;
	};
};

enum colour { RED = 1, GREEN = 7 };
enum signed_one { MINUS = -1, PLUS = 1 };

union either {
	__u64 number;
	struct {
		__u16 first;
		__u16 second;
	};
	__u8 bytes[12];
};

struct everything {
	enum colour colour;
	enum colour colours[3];
	enum signed_one sign;
	bool yes;
	char text[7];
	void *pointer;
	struct packed nested;
	struct unpacked row[2];
	__u16 grid[2][3];
	union either either;
	const volatile __s16 qualified;
	float real;
	double longer_real;
	__int128 huge;
	frontend_key key;
	struct everything *self;
} __attribute__((packed));

struct bits *keep_bits;
frontend_key frontend;
struct everything everything;
struct bits bits;
struct unpacked unpacked;
enum colour colour = RED;
