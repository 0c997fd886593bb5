/* SPDX-License-Identifier: Apache-2.0 */
/* Every way a connection ends. The table itself, `reason.def`, is generated from
 * ztunnel_py/errors.py: REASON(NAME, number, status, flag, is_early). */
#ifndef ZT_REASON_H
#define ZT_REASON_H

#include "base.h"

enum reason {
#define REASON(name, number, status, flag, is_early) REASON_##name = (number),
#include "reason.def"
#undef REASON
    REASONS,
};

/* HTTP status that tells an HBONE client. */
unsigned reason_status(enum reason reason);

/* Column of the counters: index of the response flag, 0 is "-". */
unsigned reason_flag(enum reason reason);

/* Ends a connection before it has labels: one record, no counters. */
bool reason_is_early(enum reason reason);

/* Name in the table. */
const char *reason_name(enum reason reason);

/* The reason with that number; false if there is none. */
bool reason_of(unsigned number, enum reason *reason);

#define REASON_FLAGS 8 /* response flags, columns of the counters */

#endif
