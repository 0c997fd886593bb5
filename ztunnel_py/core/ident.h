/* SPDX-License-Identifier: Apache-2.0 */
/* Identity: a workload's certificate as two TLS contexts, for accepting and for dialling.
 *
 * Built in the thread that brings the certificate, then shared read-only and reference counted:
 * handshakes begun with an older one keep it. OpenSSL verifies chains; who the other side *is* is
 * judged in the verify callback (ident_check.c), so that it gets the right alert (spec
 * identity-ops, A.6-A.9).
 */
#ifndef ZT_IDENT_H
#define ZT_IDENT_H

#include <openssl/ssl.h>

#include "mem.h"

#define IDENT_ERROR_SIZE 512

struct revocation;

/* What all identities of a core have in common. */
struct ident_rules {
    bool tls12;                    /* TLS 1.2 is spoken too */
    bool post_quantum;             /* keys are exchanged by X25519MLKEM768 only */
    struct revocation *revocation; /* outlives the identities; NULL: nothing is ever revoked */
};

struct ident {
    _Atomic uint32_t refs;
    struct mem *mem;
    SSL_CTX *server;
    SSL_CTX *client;
    struct revocation *revocation; /* see ident_rules */
    char *trust_domain; /* of our own leaf; NULL: it has no SPIFFE id, clients are not compared */
};

/* What a handshake accepts and finds out; attached to its SSL. */
struct ident_check {
    const struct ident *ident;
    const struct text *sans; /* client side: accepted identities */
    size_t n_sans;
    bool is_client;
    char *remote;                   /* SPIFFE id of the other side, owned; NULL until accepted */
    char problem[IDENT_ERROR_SIZE]; /* why it was not accepted */
};

/* NULL if the certificate cannot be used; `error` says why. One reference. */
struct ident *ident_create(struct mem *mem, struct text chain, struct text key, struct text roots,
                           const struct ident_rules *rules, char *error, size_t error_size);

struct ident *ident_ref(struct ident *ident);
void ident_unref(struct ident *ident);

/* Ties a handshake to its check, which outlives it. */
void ident_attach(SSL *ssl, struct ident_check *check);

/* The trust domain in `spiffe://td/ns/../sa/..`; empty text if it is no such id. */
struct text ident_trust_domain(struct text spiffe);

/* What stands in the way of the TLS that is asked for, or NULL. */
const char *ident_problem(bool post_quantum);

/* --- for ident*.c --- */

/* Calls `visit` for each SPIFFE id of a certificate, until it returns true. -1 if the extension
 * cannot be parsed, else whether a visit returned true. */
int ident_visit(X509 *certificate, bool (*visit)(struct text id, void *of), void *of);

/* A terminated copy, freed as MEM_OTHER. NULL without memory. */
char *ident_copy(struct mem *mem, struct text text);

/* The library's verify callback: judges what it found, and who it is. */
int ident_verify(int is_ok, X509_STORE_CTX *store);

#endif
