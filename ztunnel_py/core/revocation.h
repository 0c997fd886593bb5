/* SPDX-License-Identifier: Apache-2.0 */
/* Revocation: lists of certificates that no longer count.
 *
 * The decider brings all lists at once, `revocation_load` in any thread, and has them used by
 * `revocation_apply`. Workers ask about chains that are otherwise in order: in each handshake, and
 * after each change about what lives. A list counts for certificates of the authority that it names
 * if that authority signed it, which is found out once per key. An authority without a list revokes
 * nothing; one whose lists are all signed by somebody else is not trusted at all. When a list
 * should have been renewed is not looked at (spec identity-ops, A.10).
 */
#ifndef ZT_REVOCATION_H
#define ZT_REVOCATION_H

#include <openssl/x509.h>
#include <pthread.h>

#include "mem.h"

enum revocation_verdict {
    REVOCATION_CLEAR,
    REVOCATION_REVOKED,
    REVOCATION_UNSIGNED, /* a list names the issuer, none of them is its own */
};

struct revocation_lists;

struct revocation {
    struct mem *mem;
    pthread_mutex_t lock;            /* guards both pointers */
    struct revocation_lists *used;   /* a reference; NULL: none */
    struct revocation_lists *loaded; /* a reference; NULL: none since the last `revocation_apply` */
};

void revocation_init(struct revocation *revocation, struct mem *mem);
void revocation_clear(struct revocation *revocation);

/* Reads lists, each DER. False if one cannot be read, `error` says why. Any thread. */
bool revocation_load(struct revocation *revocation, const struct text *lists, size_t n, char *error,
                     size_t error_size);

/* Uses what was loaded last from now on. Any thread. */
void revocation_apply(struct revocation *revocation);

/* Judges a verified chain, leaf first, the anchor last: all but the anchor. Any thread. */
enum revocation_verdict revocation_check(struct revocation *revocation,
                                         const STACK_OF(X509) * chain);

#endif
