/* SPDX-License-Identifier: Apache-2.0 */
/* Who is accepted: what a handshake asks of the other side's certificates, and its name. */
#include "ident.h"

#include <openssl/x509v3.h>
#include <stdio.h>

#include "revocation.h"

#define NAMES_SHOWN 300
/* A verdict that has no alert of its own in the library, which then sends certificate_unknown. */
#define NOT_WHO_IS_EXPECTED X509_V_ERR_UNSUPPORTED_NAME_SYNTAX

static const char SPIFFE[] = "spiffe://";

/* --- SPIFFE ids --- */

/* Splits what is left of `rest` at its first slash. */
static struct text next_part(struct text *rest) {
    const char *const slash = rest->len == 0 ? NULL : memchr(rest->bytes, '/', rest->len);
    const size_t len = slash == NULL ? rest->len : (size_t)(slash - rest->bytes);
    const struct text part = {rest->bytes, len};
    const size_t used = slash == NULL ? len : len + 1;
    rest->bytes += used;
    rest->len -= used;
    return part;
}

struct text ident_trust_domain(struct text spiffe) {
    const size_t prefix = sizeof(SPIFFE) - 1;
    const struct text none = {NULL, 0};
    if (spiffe.len < prefix || memcmp(spiffe.bytes, SPIFFE, prefix) != 0 ||
        memchr(spiffe.bytes, '\0', spiffe.len) != NULL) {
        return none;
    }
    struct text rest = {spiffe.bytes + prefix, spiffe.len - prefix};
    size_t slashes = 0;
    for (size_t i = 0; i < rest.len; i++) {
        slashes += rest.bytes[i] == '/';
    }
    const struct text domain = next_part(&rest);
    const struct text ns = next_part(&rest);
    (void)next_part(&rest); /* any namespace */
    const struct text sa = next_part(&rest);
    if (slashes != 4 || !text_equal(ns, text_of("ns")) || !text_equal(sa, text_of("sa"))) {
        return none;
    }
    return (struct text){domain.len > 0 ? domain.bytes : "", domain.len};
}

int ident_visit(X509 *certificate, bool (*visit)(struct text id, void *of), void *of) {
    int critical = -1;
    GENERAL_NAMES *const names =
        X509_get_ext_d2i(certificate, NID_subject_alt_name, &critical, NULL);
    if (names == NULL) {
        return critical == -1 ? 0 : -1;
    }
    bool is_done = false;
    for (int i = 0; i < sk_GENERAL_NAME_num(names) && !is_done; i++) {
        const GENERAL_NAME *const name = sk_GENERAL_NAME_value(names, i);
        if (name->type != GEN_URI) {
            continue;
        }
        const ASN1_IA5STRING *const uri = name->d.uniformResourceIdentifier;
        const struct text id = {(const char *)ASN1_STRING_get0_data(uri),
                                (size_t)ASN1_STRING_length(uri)};
        if (ident_trust_domain(id).bytes != NULL) {
            is_done = visit(id, of);
        }
    }
    GENERAL_NAMES_free(names);
    return is_done;
}

/* --- who is accepted --- */

struct found {
    struct ident_check *check;
    char shown[NAMES_SHOWN]; /* ids met so far, for the message */
    size_t shown_len;
};

static void show(struct found *found, struct text id) {
    const int n = snprintf(found->shown + found->shown_len, sizeof(found->shown) - found->shown_len,
                           "%s%.*s", found->shown_len > 0 ? "," : "", (int)id.len, id.bytes);
    if (n > 0 && (size_t)n < sizeof(found->shown) - found->shown_len) {
        found->shown_len += (size_t)n;
    }
}

char *ident_copy(struct mem *mem, struct text text) {
    char *const copy = mem_alloc(mem, MEM_OTHER, text.len + 1);
    if (copy != NULL && text.len > 0) {
        memcpy(copy, text.bytes, text.len);
    }
    return copy;
}

static bool is_anchor(X509_STORE_CTX *store) {
    const STACK_OF(X509) *const chain = X509_STORE_CTX_get0_chain(store);
    const int depth = X509_STORE_CTX_get_error_depth(store);
    return chain != NULL && depth > 0 && depth == sk_X509_num(chain) - 1;
}

static bool visit_server(struct text id, void *of) {
    struct found *const found = of;
    struct ident_check *const check = found->check;
    show(found, id);
    for (size_t i = 0; i < check->n_sans; i++) {
        if (text_equal(check->sans[i], id)) {
            check->remote = ident_copy(check->ident->mem, id);
            return true;
        }
    }
    return false;
}

/* The first id is who the client is; it must be of our trust domain. ztunnel accepts a domain found
 * on any of several ids; here the id that is used must be the one that matches. */
static bool visit_client(struct text id, void *of) {
    struct found *const found = of;
    struct ident_check *const check = found->check;
    const char *const ours = check->ident->trust_domain;
    show(found, id);
    if (ours == NULL || text_equal(ident_trust_domain(id), text_of(ours))) {
        check->remote = ident_copy(check->ident->mem, id);
    }
    return true;
}

static void explain_server(struct ident_check *check, const struct found *found) {
    char wanted[NAMES_SHOWN] = "";
    size_t len = 0;
    for (size_t i = 0; i < check->n_sans; i++) {
        const int n = snprintf(wanted + len, sizeof(wanted) - len, "%s%.*s", i > 0 ? "," : "",
                               (int)check->sans[i].len, check->sans[i].bytes);
        if (n < 0 || (size_t)n >= sizeof(wanted) - len) {
            break;
        }
        len += (size_t)n;
    }
    (void)snprintf(check->problem, sizeof(check->problem),
                   "identity verification error: peer did not present the expected SAN "
                   "(%.200s), got %.200s",
                   wanted, found->shown_len > 0 ? found->shown : "none");
}

static void explain_client(struct ident_check *check, const struct found *found) {
    if (found->shown_len == 0) {
        (void)snprintf(check->problem, sizeof(check->problem),
                       "the client certificate has no SPIFFE identity");
    } else {
        (void)snprintf(check->problem, sizeof(check->problem),
                       "identity verification error: peer did not present the expected "
                       "trustdomain (%.100s), got %.200s",
                       check->ident->trust_domain, found->shown);
    }
}

/* What a certificate below the anchor may be used for. A leaf's keyUsage is not looked at;
 * extendedKeyUsage may be missing. */
static int judge_use(struct ident_check *check, X509 *certificate, bool is_leaf) {
    const uint32_t wanted = check->is_client ? XKU_SSL_SERVER : XKU_SSL_CLIENT;
    if (is_leaf && (X509_get_extension_flags(certificate) & EXFLAG_CA) != 0) {
        (void)snprintf(check->problem, sizeof(check->problem),
                       "invalid peer certificate: an authority's, used as a workload's");
        return X509_V_ERR_INVALID_CA;
    }
    if (!is_leaf && X509_check_ca(certificate) != 1) {
        (void)snprintf(check->problem, sizeof(check->problem),
                       "invalid peer certificate: issued by one that is no authority");
        return X509_V_ERR_INVALID_CA;
    }
    if ((X509_get_extended_key_usage(certificate) & wanted) == 0) {
        (void)snprintf(check->problem, sizeof(check->problem),
                       "invalid peer certificate: not for this use (extendedKeyUsage)");
        return X509_V_ERR_INVALID_PURPOSE;
    }
    return X509_V_OK;
}

/* A list that cannot be used refuses what it might revoke; ztunnel's clients and servers say so by
 * different alerts. */
static int judge_revocation(struct ident_check *check, const STACK_OF(X509) * chain) {
    if (check->ident->revocation == NULL) {
        return X509_V_OK;
    }
    switch (revocation_check(check->ident->revocation, chain)) {
    case REVOCATION_CLEAR:
        return X509_V_OK;
    case REVOCATION_REVOKED:
        return X509_V_ERR_CERT_REVOKED;
    case REVOCATION_UNSIGNED:
        break;
    }
    (void)snprintf(check->problem, sizeof(check->problem),
                   "invalid peer certificate: the revocation list of its issuer is not signed by "
                   "it; check CRL_PATH");
    return check->is_client ? NOT_WHO_IS_EXPECTED : X509_V_ERR_APPLICATION_VERIFICATION;
}

static int judge_name(struct ident_check *check, X509 *leaf) {
    struct found found = {.check = check};
    const int seen = ident_visit(leaf, check->is_client ? visit_server : visit_client, &found);
    if (check->remote != NULL) {
        return X509_V_OK;
    }
    if (seen < 0) {
        (void)snprintf(check->problem, sizeof(check->problem),
                       "the certificate's subjectAltName cannot be parsed");
    } else if (check->is_client) {
        explain_server(check, &found);
    } else {
        explain_client(check, &found);
    }
    return NOT_WHO_IS_EXPECTED;
}

static int judge(struct ident_check *check, X509_STORE_CTX *store) {
    const STACK_OF(X509) *const chain = X509_STORE_CTX_get0_chain(store);
    X509 *const at = X509_STORE_CTX_get_current_cert(store);
    const int depth = X509_STORE_CTX_get_error_depth(store);
    if (is_anchor(store) || (depth == 0 && check->remote != NULL)) {
        return X509_V_OK;
    }
    int verdict = judge_use(check, at, depth == 0);
    if (depth == 0 && verdict == X509_V_OK) {
        verdict = judge_revocation(check, chain);
    }
    if (depth == 0 && verdict == X509_V_OK) {
        verdict = judge_name(check, at);
    }
    return verdict;
}

/* Validity of the trust anchor is not checked (A.6); everything else stands. */
static int judge_problem(struct ident_check *check, X509_STORE_CTX *store) {
    const int error = X509_STORE_CTX_get_error(store);
    const bool is_early = error == X509_V_ERR_CERT_NOT_YET_VALID;
    if ((is_early || error == X509_V_ERR_CERT_HAS_EXPIRED) && is_anchor(store)) {
        return X509_V_OK;
    }
    if (is_early) {
        (void)snprintf(check->problem, sizeof(check->problem),
                       "invalid peer certificate: certificate is not yet valid");
        return X509_V_ERR_CERT_HAS_EXPIRED; /* for its alert */
    }
    return error;
}

int ident_verify(int is_ok, X509_STORE_CTX *store) {
    SSL *const ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct ident_check *const check = SSL_get_app_data(ssl);
    if (check == NULL) {
        return 0;
    }
    int verdict = is_ok ? X509_V_OK : judge_problem(check, store);
    if (verdict == X509_V_OK) {
        verdict = judge(check, store);
    }
    X509_STORE_CTX_set_error(store, verdict);
    return verdict == X509_V_OK;
}

void ident_attach(SSL *ssl, struct ident_check *check) {
    SSL_set_app_data(ssl, check);
}
