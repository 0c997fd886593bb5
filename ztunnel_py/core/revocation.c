/* SPDX-License-Identifier: Apache-2.0 */
/* See revocation.h. */
#include "revocation.h"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509v3.h>
#include <stdio.h>

#define KEYS_KNOWN 16 /* of one list: authorities of its name that were met */

/* Whether a key signed the list. */
struct signer {
    unsigned char digest[EVP_MAX_MD_SIZE];
    bool has_signed;
};

struct revocation_list {
    X509_CRL *crl; /* sorted by serial number, not changed any more */
    pthread_mutex_t lock;
    struct signer signers[KEYS_KNOWN]; /* guarded, as is their number */
    size_t n_signers;
};

struct revocation_lists {
    _Atomic uint32_t refs;
    size_t n;
    struct revocation_list items[];
};

/* --- life --- */

static void lists_unref(struct mem *mem, struct revocation_lists *lists) {
    if (lists == NULL || atomic_fetch_sub_explicit(&lists->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    for (size_t i = 0; i < lists->n; i++) {
        X509_CRL_free(lists->items[i].crl);
        pthread_mutex_destroy(&lists->items[i].lock);
    }
    mem_free(mem, MEM_CORE, lists);
}

void revocation_init(struct revocation *revocation, struct mem *mem) {
    *revocation = (struct revocation){.mem = mem};
    pthread_mutex_init(&revocation->lock, NULL);
}

void revocation_clear(struct revocation *revocation) {
    lists_unref(revocation->mem, revocation->used);
    lists_unref(revocation->mem, revocation->loaded);
    revocation->used = NULL;
    revocation->loaded = NULL;
    pthread_mutex_destroy(&revocation->lock);
}

/* --- loading --- */

static X509_CRL *parse(struct text der) {
    const unsigned char *at = (const unsigned char *)der.bytes;
    X509_CRL *const crl = d2i_X509_CRL(NULL, &at, (long)der.len);
    if (crl == NULL || at != (const unsigned char *)der.bytes + der.len) {
        X509_CRL_free(crl);
        return NULL;
    }
    X509_REVOKED *none = NULL;
    ASN1_INTEGER *const any = ASN1_INTEGER_new();
    if (any != NULL) {
        (void)X509_CRL_get0_by_serial(crl, &none, any); /* sorts it here, not in a handshake */
    }
    ASN1_INTEGER_free(any);
    return crl;
}

bool revocation_load(struct revocation *revocation, const struct text *lists, size_t n, char *error,
                     size_t error_size) {
    const size_t size = sizeof(struct revocation_lists) + n * sizeof(struct revocation_list);
    struct revocation_lists *loaded = mem_alloc(revocation->mem, MEM_CORE, size);
    if (loaded == NULL) {
        (void)snprintf(error, error_size, "out of memory");
        return false;
    }
    atomic_init(&loaded->refs, 1);
    for (; loaded->n < n; loaded->n++) {
        struct revocation_list *const list = &loaded->items[loaded->n];
        list->crl = parse(lists[loaded->n]);
        if (list->crl == NULL) {
            (void)snprintf(error, error_size, "revocation list %zu cannot be parsed",
                           loaded->n + 1);
            lists_unref(revocation->mem, loaded);
            ERR_clear_error();
            return false;
        }
        pthread_mutex_init(&list->lock, NULL);
    }
    pthread_mutex_lock(&revocation->lock);
    struct revocation_lists *const old = revocation->loaded;
    revocation->loaded = loaded;
    pthread_mutex_unlock(&revocation->lock);
    lists_unref(revocation->mem, old);
    return true;
}

void revocation_apply(struct revocation *revocation) {
    pthread_mutex_lock(&revocation->lock);
    struct revocation_lists *old = NULL;
    if (revocation->loaded != NULL) {
        old = revocation->used;
        revocation->used = revocation->loaded;
        revocation->loaded = NULL;
    }
    pthread_mutex_unlock(&revocation->lock);
    lists_unref(revocation->mem, old);
}

/* --- asking --- */

static bool verify_list(struct revocation_list *list, X509 *issuer) {
    (void)ERR_set_mark(); /* in the midst of a handshake, whose errors are not ours to drop */
    EVP_PKEY *const key = X509_get0_pubkey(issuer);
    const bool has_signed = key != NULL && X509_CRL_verify(list->crl, key) == 1;
    (void)ERR_pop_to_mark();
    return has_signed;
}

/* The signature of a long list costs milliseconds, so that it is checked once per key. */
static bool is_signed_by(struct revocation_list *list, X509 *issuer) {
    unsigned char digest[EVP_MAX_MD_SIZE] = {0};
    unsigned len = 0;
    if (X509_pubkey_digest(issuer, EVP_sha256(), digest, &len) != 1) {
        return false;
    }
    pthread_mutex_lock(&list->lock);
    size_t at = 0;
    while (at < list->n_signers && memcmp(list->signers[at].digest, digest, len) != 0) {
        at++;
    }
    bool has_signed = false;
    if (at < list->n_signers) {
        has_signed = list->signers[at].has_signed;
    } else {
        has_signed = verify_list(list, issuer);
        if (at < KEYS_KNOWN) {
            memcpy(list->signers[at].digest, digest, len);
            list->signers[at].has_signed = has_signed;
            list->n_signers++;
        }
    }
    pthread_mutex_unlock(&list->lock);
    return has_signed;
}

/* An anchor is trusted with lists whatever its certificate says. */
static bool may_sign_lists(X509 *issuer, bool is_anchor) {
    return is_anchor || (X509_get_key_usage(issuer) & KU_CRL_SIGN) != 0;
}

static enum revocation_verdict check_one(struct revocation_lists *lists, X509 *certificate,
                                         X509 *issuer, bool is_anchor) {
    const X509_NAME *const name = X509_get_issuer_name(certificate);
    enum revocation_verdict verdict = REVOCATION_CLEAR;
    bool has_own = false;
    for (size_t i = 0; i < lists->n; i++) {
        struct revocation_list *const list = &lists->items[i];
        X509_REVOKED *found = NULL;
        if (X509_NAME_cmp(X509_CRL_get_issuer(list->crl), name) != 0) {
            continue;
        }
        if (!may_sign_lists(issuer, is_anchor) || !is_signed_by(list, issuer)) {
            verdict = REVOCATION_UNSIGNED;
            continue;
        }
        has_own = true;
        if (X509_CRL_get0_by_serial(list->crl, &found, X509_get0_serialNumber(certificate)) != 0) {
            return REVOCATION_REVOKED;
        }
    }
    return has_own ? REVOCATION_CLEAR : verdict;
}

static struct revocation_lists *lists_ref(struct revocation *revocation) {
    pthread_mutex_lock(&revocation->lock);
    struct revocation_lists *const lists = revocation->used;
    if (lists != NULL) {
        atomic_fetch_add_explicit(&lists->refs, 1, memory_order_relaxed);
    }
    pthread_mutex_unlock(&revocation->lock);
    return lists;
}

enum revocation_verdict revocation_check(struct revocation *revocation,
                                         const STACK_OF(X509) * chain) {
    struct revocation_lists *const lists = lists_ref(revocation);
    enum revocation_verdict verdict = REVOCATION_CLEAR;
    const int n = lists == NULL || lists->n == 0 ? 0 : sk_X509_num(chain);
    for (int i = 0; i + 1 < n && verdict != REVOCATION_REVOKED; i++) {
        const enum revocation_verdict one =
            check_one(lists, sk_X509_value(chain, i), sk_X509_value(chain, i + 1), i + 2 == n);
        verdict = one != REVOCATION_CLEAR ? one : verdict;
    }
    lists_unref(revocation->mem, lists);
    return verdict;
}
