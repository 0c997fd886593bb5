/* SPDX-License-Identifier: Apache-2.0 */
/* The table of endings; see reason.h. */
#include "reason.h"

/* One line of the table. */
struct row {
    const char *name; /* NULL: no reason has this number */
    uint16_t status;  /* HTTP status toward an HBONE client */
    uint8_t flag;     /* counter column */
    bool is_early;    /* ends a connection before it has labels */
};

static const struct row ROWS[] = {
#define REASON(name, number, status, flag, is_early) [(number)] = {#name, status, flag, is_early},
#include "reason.def"
#undef REASON
};

/* The counters have a column for every flag in the table. */
#define REASON(name, number, status, flag, is_early) \
    _Static_assert((flag) < REASON_FLAGS, "flag of " #name);
#include "reason.def"
#undef REASON

unsigned reason_status(enum reason reason) {
    return ROWS[reason].status;
}

unsigned reason_flag(enum reason reason) {
    return ROWS[reason].flag;
}

bool reason_is_early(enum reason reason) {
    return ROWS[reason].is_early;
}

const char *reason_name(enum reason reason) {
    return ROWS[reason].name;
}

bool reason_of(unsigned number, enum reason *reason) {
    if (number >= ARRAY_LEN(ROWS) || ROWS[number].name == NULL) {
        return false;
    }
    *reason = (enum reason)number;
    return true;
}
