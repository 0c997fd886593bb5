/* SPDX-License-Identifier: Apache-2.0 */
/* TLS without I/O: wire bytes on one side, plain bytes on the other.
 *
 * Batches in both directions: what was read from the wire is fed at once, however many records it
 * holds, and what is written gathers in blocks until the owner sends them. Writing never stops
 * half-way: whoever writes asks first whether the way out is congested.
 */
#ifndef ZT_TLS_H
#define ZT_TLS_H

#include "buf.h"
#include "ident.h"

enum tls_state { TLS_MORE, TLS_DONE, TLS_CLOSED, TLS_FAILED };

struct tls {
    SSL *ssl;
    struct mem *mem;
    struct stock *stock; /* of wire blocks */
    struct ident *ident;
    struct ident_check check;
    const uint8_t *in; /* fed and not yet read */
    size_t in_len;
    struct block *out_first, *out_last; /* encrypted, for the wire */
    size_t out_len;
};

/* Prepares one side of a connection; takes no reference but its own. `sans` outlive it. False
 * without memory. */
bool tls_open(struct tls *tls, struct mem *mem, struct stock *stock, struct ident *ident,
              bool is_client, const struct text *sans, size_t n_sans);

/* Frees what it holds; harmless for one that was never opened (zeroed). */
void tls_close(struct tls *tls);

/* Gives it wire bytes, valid until they are read: call `tls_shake` or `tls_read` until TLS_MORE. */
void tls_feed(struct tls *tls, const uint8_t *bytes, size_t len);

/* Advances the handshake: TLS_DONE once it is complete and the other side accepted. */
enum tls_state tls_shake(struct tls *tls);

/* Decrypts up to `size` bytes; TLS_DONE if some were read, TLS_MORE if all that was fed is used. */
enum tls_state tls_read(struct tls *tls, uint8_t *to, size_t size, size_t *n);

/* Encrypts all of it. False if the connection is broken. */
bool tls_write(struct tls *tls, const uint8_t *bytes, size_t len);

/* Says close_notify. */
void tls_shut(struct tls *tls);

/* Takes `n` bytes off the way out. */
void tls_sent(struct tls *tls, size_t n);

/* Up to `max` pieces of what is to be sent. */
int tls_out(const struct tls *tls, struct iovec *iov, int max);

/* Gives back memory that an idle connection does not need. */
void tls_rest(struct tls *tls);

/* The other side's chain was in order, and is revoked by now. */
bool tls_is_revoked(const struct tls *tls);

/* The handshake failed because the other side is revoked. */
bool tls_was_revoked(const struct tls *tls);

/* What went wrong, terminated. */
void tls_problem(const struct tls *tls, char *text, size_t size);

/* Once per process. False without memory. */
bool tls_init(void);

#endif
