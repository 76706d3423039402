/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Log lines to the ring buffer km_log_event.
 *
 * The texts are constants: bpf_snprintf() is younger (5.13) than the oldest kernel that this
 * object serves (5.10).
 */
#ifndef HOOK_LOG_H
#define HOOK_LOG_H

#include "shared_maps.h"

enum log_level {
	LOG_ERROR = 0,
	LOG_WARNING = 1,
	LOG_INFO = 2,
	LOG_DEBUG = 3,
};

/* Lines above this level are not written. User space may change it at any time. */
volatile __u32 bpf_log_level = LOG_INFO;

/* One record for each place that logs, made at compile time, copied out in one call. */
#define log_line(level, text)                                                                    \
	({                                                                                       \
		static const struct log_event __event = {.ret = sizeof(text), .msg = text};      \
		_Static_assert(sizeof(text) <= LOG_TEXT_SIZE, "log text too long");              \
                                                                                                 \
		if ((level) <= bpf_log_level)                                                    \
			bpf_ringbuf_output(&km_log_event, (void *)&__event, sizeof(__event), 0); \
	})

#define log_error(text) log_line(LOG_ERROR, "error: " text)
#define log_info(text) log_line(LOG_INFO, "info: " text)
#define log_debug(text) log_line(LOG_DEBUG, "debug: " text)

#endif
