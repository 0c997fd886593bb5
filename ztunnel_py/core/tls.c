/* SPDX-License-Identifier: Apache-2.0 */
/* See tls.h. */
#include "tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <stdio.h>

#include "revocation.h"

static BIO_METHOD *method;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* --- the library's view of the wire --- */

static int wire_read(BIO *bio, char *to, int size) {
    struct tls *const tls = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if (tls->in_len == 0) {
        BIO_set_retry_read(bio);
        return -1;
    }
    const size_t n = (size_t)size < tls->in_len ? (size_t)size : tls->in_len;
    memcpy(to, tls->in, n);
    tls->in += n;
    tls->in_len -= n;
    return (int)n;
}

static bool out_add(struct tls *tls) {
    struct block *const block = stock_take(tls->mem, tls->stock);
    if (block == NULL) {
        return false;
    }
    if (tls->out_last != NULL) {
        tls->out_last->next = block;
    } else {
        tls->out_first = block;
    }
    tls->out_last = block;
    return true;
}

static int wire_write(BIO *bio, const char *bytes, int len) {
    struct tls *const tls = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    size_t left = (size_t)len;
    while (left > 0) {
        struct block *block = tls->out_last;
        if (block == NULL || block->end == block->size) {
            if (!out_add(tls)) {
                return -1;
            }
            block = tls->out_last;
        }
        const size_t room = block->size - block->end;
        const size_t n = left < room ? left : room;
        memcpy(block->bytes + block->end, bytes + (size_t)len - left, n);
        block->end += n;
        tls->out_len += n;
        left -= n;
    }
    return len;
}

static long wire_ctrl(BIO *bio, int command, long number, void *pointer) {
    (void)bio;
    (void)number;
    (void)pointer;
    return command == BIO_CTRL_FLUSH ? 1 : 0;
}

static void make_method(void) {
    BIO_METHOD *const made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "wire");
    if (made != NULL && BIO_meth_set_read(made, wire_read) &&
        BIO_meth_set_write(made, wire_write) && BIO_meth_set_ctrl(made, wire_ctrl)) {
        method = made;
    }
}

bool tls_init(void) {
    pthread_once(&once, make_method);
    return method != NULL;
}

/* --- life --- */

bool tls_open(struct tls *tls, struct mem *mem, struct stock *stock, struct ident *ident,
              bool is_client, const struct text *sans, size_t n_sans) {
    memset(tls, 0, sizeof(*tls));
    tls->mem = mem;
    tls->stock = stock;
    tls->ident = ident_ref(ident);
    tls->check = (struct ident_check){
        .ident = ident, .sans = sans, .n_sans = n_sans, .is_client = is_client};
    tls->ssl = SSL_new(is_client ? ident->client : ident->server);
    BIO *const bio = tls->ssl == NULL ? NULL : BIO_new(method);
    if (bio == NULL) {
        ERR_clear_error();
        tls_close(tls);
        return false;
    }
    BIO_set_data(bio, tls);
    BIO_set_init(bio, 1);
    SSL_set_bio(tls->ssl, bio, bio);
    ident_attach(tls->ssl, &tls->check);
    if (is_client) {
        SSL_set_connect_state(tls->ssl);
    } else {
        SSL_set_accept_state(tls->ssl);
    }
    return true;
}

void tls_close(struct tls *tls) {
    SSL_free(tls->ssl);
    tls->ssl = NULL;
    while (tls->out_first != NULL) {
        struct block *const block = tls->out_first;
        tls->out_first = block->next;
        stock_give(tls->mem, tls->stock, block);
    }
    tls->out_last = NULL;
    tls->out_len = 0;
    if (tls->ident != NULL) {
        mem_free(tls->ident->mem, MEM_OTHER, tls->check.remote);
        tls->check.remote = NULL;
        ident_unref(tls->ident);
        tls->ident = NULL;
    }
}

void tls_feed(struct tls *tls, const uint8_t *bytes, size_t len) {
    tls->in = bytes;
    tls->in_len = len;
}

enum tls_state tls_shake(struct tls *tls) {
    ERR_clear_error();
    const int result = SSL_do_handshake(tls->ssl);
    if (result == 1) {
        return tls->check.remote != NULL ? TLS_DONE : TLS_FAILED;
    }
    return SSL_get_error(tls->ssl, result) == SSL_ERROR_WANT_READ ? TLS_MORE : TLS_FAILED;
}

enum tls_state tls_read(struct tls *tls, uint8_t *to, size_t size, size_t *n) {
    *n = 0;
    ERR_clear_error();
    while (*n < size) {
        size_t got = 0;
        const int result = SSL_read_ex(tls->ssl, to + *n, size - *n, &got);
        if (result == 1) {
            *n += got;
            continue;
        }
        if (*n > 0) {
            return TLS_DONE; /* what comes next is met again by the next call */
        }
        switch (SSL_get_error(tls->ssl, result)) {
        case SSL_ERROR_WANT_READ:
            return TLS_MORE;
        case SSL_ERROR_ZERO_RETURN:
            return TLS_CLOSED;
        default:
            return TLS_FAILED;
        }
    }
    return TLS_DONE;
}

bool tls_write(struct tls *tls, const uint8_t *bytes, size_t len) {
    size_t written = 0;
    ERR_clear_error();
    return SSL_write_ex(tls->ssl, bytes, len, &written) == 1 && written == len;
}

void tls_shut(struct tls *tls) {
    if (tls->ssl != NULL && SSL_is_init_finished(tls->ssl)) {
        ERR_clear_error();
        (void)SSL_shutdown(tls->ssl); /* the answer is not waited for */
        ERR_clear_error();
    }
}

void tls_sent(struct tls *tls, size_t n) {
    tls->out_len -= n;
    while (tls->out_first != NULL) {
        struct block *const block = tls->out_first;
        const size_t len = block->end - block->start;
        if (n < len) {
            block->start += n;
            return;
        }
        n -= len;
        tls->out_first = block->next;
        if (tls->out_first == NULL) {
            tls->out_last = NULL;
        }
        stock_give(tls->mem, tls->stock, block);
    }
}

int tls_out(const struct tls *tls, struct iovec *iov, int max) {
    int n = 0;
    for (struct block *block = tls->out_first; block != NULL && n < max; block = block->next) {
        iov[n].iov_base = block->bytes + block->start;
        iov[n].iov_len = block->end - block->start;
        n++;
    }
    return n;
}

void tls_rest(struct tls *tls) {
    (void)SSL_free_buffers(tls->ssl); /* refuses while they are in use */
}

bool tls_is_revoked(const struct tls *tls) {
    const STACK_OF(X509) *const chain = tls->ssl == NULL ? NULL : SSL_get0_verified_chain(tls->ssl);
    return chain != NULL && tls->ident->revocation != NULL &&
           revocation_check(tls->ident->revocation, chain) == REVOCATION_REVOKED;
}

bool tls_was_revoked(const struct tls *tls) {
    return tls->ssl != NULL && SSL_get_verify_result(tls->ssl) == X509_V_ERR_CERT_REVOKED;
}

void tls_problem(const struct tls *tls, char *text, size_t size) {
    const unsigned long code = ERR_peek_last_error();
    const char *const reason = code == 0 ? NULL : ERR_reason_error_string(code);
    const long verified = tls->ssl == NULL ? X509_V_OK : SSL_get_verify_result(tls->ssl);
    if (tls->check.problem[0] != '\0') {
        (void)snprintf(text, size, "%s", tls->check.problem);
    } else if (verified != X509_V_OK) {
        (void)snprintf(text, size, "invalid peer certificate: %s",
                       X509_verify_cert_error_string(verified));
    } else {
        (void)snprintf(text, size, "%s", reason != NULL ? reason : "the connection broke");
    }
    ERR_clear_error();
}
