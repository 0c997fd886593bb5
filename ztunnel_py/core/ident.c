/* SPDX-License-Identifier: Apache-2.0 */
/* See ident.h. */
#include "ident.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>

#define MAX_INTERMEDIATES 6
#define NAMES_SHOWN 300

static const char TLS13_SUITES[] = "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256";
static const char TLS12_CIPHERS[] =
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-GCM-SHA256:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256";
static const char GROUPS[] = "X25519:P-256:P-384";
static const unsigned char ALPN[] = {2, 'h', '2'};
/* Certificates of a few hundred bytes do not get shorter, but slower (OpenSSL 3.2 and later). */
#ifdef SSL_OP_NO_TX_CERTIFICATE_COMPRESSION
#define PLAIN_CERTIFICATES \
    (SSL_OP_NO_TX_CERTIFICATE_COMPRESSION | SSL_OP_NO_RX_CERTIFICATE_COMPRESSION)
#else
#define PLAIN_CERTIFICATES 0
#endif
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

/* Calls `visit` for each SPIFFE id of a certificate, until it returns true. -1 if the extension
 * cannot be parsed, else whether a visit returned true. */
static int visit_ids(X509 *certificate, bool (*visit)(struct text id, void *of), void *of) {
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
    bool is_domain_ours; /* one of them has our trust domain */
};

static void show(struct found *found, struct text id) {
    const int n = snprintf(found->shown + found->shown_len, sizeof(found->shown) - found->shown_len,
                           "%s%.*s", found->shown_len > 0 ? ", " : "", (int)id.len, id.bytes);
    if (n > 0 && (size_t)n < sizeof(found->shown) - found->shown_len) {
        found->shown_len += (size_t)n;
    }
}

static char *copy_text(struct mem *mem, struct text text) {
    char *const copy = mem_alloc(mem, MEM_OTHER, text.len + 1);
    if (copy != NULL && text.len > 0) {
        memcpy(copy, text.bytes, text.len);
    }
    return copy;
}

static bool visit_server(struct text id, void *of) {
    struct found *const found = of;
    struct ident_check *const check = found->check;
    show(found, id);
    for (size_t i = 0; i < check->n_sans; i++) {
        if (text_equal(check->sans[i], id)) {
            check->remote = copy_text(check->ident->mem, id);
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
        found->is_domain_ours = true;
        check->remote = copy_text(check->ident->mem, id);
    }
    return true;
}

static void explain_server(struct ident_check *check, const struct found *found) {
    char wanted[NAMES_SHOWN] = "";
    size_t len = 0;
    for (size_t i = 0; i < check->n_sans; i++) {
        const int n = snprintf(wanted + len, sizeof(wanted) - len, "%s%.*s", i > 0 ? ", " : "",
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
                       "the client's trust domain is not %.100s: %.200s",
                       check->ident->trust_domain, found->shown);
    }
}

/* What a leaf may be used for. Its keyUsage is not looked at; extendedKeyUsage may be missing. */
static int judge_use(struct ident_check *check, X509 *leaf) {
    const uint32_t wanted = check->is_client ? XKU_SSL_SERVER : XKU_SSL_CLIENT;
    if ((X509_get_extension_flags(leaf) & EXFLAG_CA) != 0) {
        (void)snprintf(check->problem, sizeof(check->problem),
                       "invalid peer certificate: an authority's, used as a workload's");
        return X509_V_ERR_INVALID_CA;
    }
    if ((X509_get_extended_key_usage(leaf) & wanted) == 0) {
        (void)snprintf(check->problem, sizeof(check->problem),
                       "invalid peer certificate: not for this use (extendedKeyUsage)");
        return X509_V_ERR_INVALID_PURPOSE;
    }
    return X509_V_OK;
}

/* Judges a leaf whose chain is in order. Returns an X509_V_ code: the one for who it is has no
 * alert of its own in the library, which then sends certificate_unknown, as it should. */
static int judge(struct ident_check *check, X509 *leaf) {
    struct found found = {.check = check};
    const int use = judge_use(check, leaf);
    if (use != X509_V_OK) {
        return use;
    }
    const int seen = visit_ids(leaf, check->is_client ? visit_server : visit_client, &found);
    if (seen < 0) {
        (void)snprintf(check->problem, sizeof(check->problem),
                       "the certificate's subjectAltName cannot be parsed");
        return X509_V_ERR_UNSUPPORTED_NAME_SYNTAX;
    }
    if (check->remote != NULL) {
        return X509_V_OK;
    }
    if (check->is_client) {
        explain_server(check, &found);
    } else {
        explain_client(check, &found);
    }
    return X509_V_ERR_UNSUPPORTED_NAME_SYNTAX;
}

/* Validity of the trust anchor is not checked (A.6); everything else stands. */
static int verify(int is_ok, X509_STORE_CTX *store) {
    const int error = X509_STORE_CTX_get_error(store);
    if (!is_ok) {
        X509 *const at = X509_STORE_CTX_get_current_cert(store);
        const STACK_OF(X509) *const chain = X509_STORE_CTX_get0_chain(store);
        const int depth = X509_STORE_CTX_get_error_depth(store);
        const bool is_anchor = chain != NULL && depth > 0 && depth == sk_X509_num(chain) - 1;
        const bool is_age =
            error == X509_V_ERR_CERT_HAS_EXPIRED || error == X509_V_ERR_CERT_NOT_YET_VALID;
        if (at == NULL || !is_anchor || !is_age) {
            return 0;
        }
        X509_STORE_CTX_set_error(store, X509_V_OK);
    }
    if (X509_STORE_CTX_get_error_depth(store) != 0) {
        return 1;
    }
    SSL *const ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct ident_check *const check = SSL_get_app_data(ssl);
    if (check == NULL) {
        return 0;
    }
    if (check->remote != NULL) {
        return 1;
    }
    const int verdict = judge(check, X509_STORE_CTX_get_current_cert(store));
    if (verdict != X509_V_OK) {
        X509_STORE_CTX_set_error(store, verdict);
        return 0;
    }
    return 1;
}

void ident_attach(SSL *ssl, struct ident_check *check) {
    SSL_set_app_data(ssl, check);
}

/* A client that offers ALPN must offer h2; one that offers none is accepted. */
static int select_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_len,
                       const unsigned char *in, unsigned in_len, void *argument) {
    (void)ssl;
    (void)argument;
    for (unsigned at = 0; at + 1 <= in_len; at += 1U + in[at]) {
        if (in[at] == 2 && at + 3 <= in_len && memcmp(in + at + 1, ALPN + 1, 2) == 0) {
            *out = in + at + 1;
            *out_len = 2;
            return SSL_TLSEXT_ERR_OK;
        }
    }
    return SSL_TLSEXT_ERR_ALERT_FATAL;
}

/* --- contexts --- */

static void say(char *error, size_t size, const char *what) {
    const unsigned long code = ERR_peek_last_error();
    const char *const reason = code == 0 ? NULL : ERR_reason_error_string(code);
    (void)snprintf(error, size, "%s%s%s", what, reason != NULL ? ": " : "",
                   reason != NULL ? reason : "");
    ERR_clear_error();
}

/* Reads all certificates of a PEM text. NULL if one cannot be parsed or there is none. */
static STACK_OF(X509) * read_certificates(struct text pem) {
    BIO *const bio = BIO_new_mem_buf(pem.bytes, (int)pem.len);
    STACK_OF(X509) *const found = sk_X509_new_null();
    X509 *one = NULL;
    bool is_kept = bio != NULL && found != NULL;
    while (is_kept && (one = PEM_read_bio_X509(bio, NULL, NULL, NULL)) != NULL) {
        is_kept = sk_X509_push(found, one) > 0;
    }
    const bool is_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
    BIO_free(bio);
    if (!is_kept || !is_end || sk_X509_num(found) == 0) {
        sk_X509_pop_free(found, X509_free);
        return NULL;
    }
    ERR_clear_error();
    return found;
}

static EVP_PKEY *read_key(struct text pem) {
    BIO *const bio = BIO_new_mem_buf(pem.bytes, (int)pem.len);
    EVP_PKEY *const key = bio == NULL ? NULL : PEM_read_bio_PrivateKey(bio, NULL, NULL, NULL);
    BIO_free(bio);
    return key;
}

static bool set_protocol(SSL_CTX *ctx, bool tls12) {
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                 SSL_OP_CIPHER_SERVER_PREFERENCE | PLAIN_CERTIFICATES);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    /* What is sent was issued so: the library neither looks up nor verifies a chain each time. */
    SSL_CTX_set_mode(ctx, SSL_MODE_AUTO_RETRY | SSL_MODE_NO_AUTO_CHAIN);
    SSL_CTX_clear_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE);
    return SSL_CTX_set_min_proto_version(ctx, tls12 ? TLS1_2_VERSION : TLS1_3_VERSION) == 1 &&
           SSL_CTX_set_max_proto_version(ctx, TLS1_3_VERSION) == 1 &&
           SSL_CTX_set_ciphersuites(ctx, TLS13_SUITES) == 1 &&
           SSL_CTX_set_cipher_list(ctx, TLS12_CIPHERS) == 1 &&
           SSL_CTX_set1_groups_list(ctx, GROUPS) == 1 && SSL_CTX_set_num_tickets(ctx, 0) == 1;
}

static bool set_certificate(SSL_CTX *ctx, STACK_OF(X509) * chain, EVP_PKEY *key) {
    bool is_set = SSL_CTX_use_certificate(ctx, sk_X509_value(chain, 0)) == 1 &&
                  SSL_CTX_use_PrivateKey(ctx, key) == 1 && SSL_CTX_check_private_key(ctx) == 1;
    for (int i = 1; i < sk_X509_num(chain) && is_set; i++) {
        is_set = SSL_CTX_add1_chain_cert(ctx, sk_X509_value(chain, i)) == 1;
    }
    return is_set;
}

static bool set_trust(SSL_CTX *ctx, STACK_OF(X509) * roots, bool is_server) {
    X509_STORE *const store = SSL_CTX_get_cert_store(ctx);
    for (int i = 0; i < sk_X509_num(roots); i++) {
        if (X509_STORE_add_cert(store, sk_X509_value(roots, i)) != 1) {
            return false;
        }
        if (is_server && SSL_CTX_add_client_CA(ctx, sk_X509_value(roots, i)) != 1) {
            return false;
        }
    }
    X509_VERIFY_PARAM *const param = SSL_CTX_get0_param(ctx);
    X509_VERIFY_PARAM_set_flags(param, X509_V_FLAG_PARTIAL_CHAIN);
    X509_VERIFY_PARAM_set_depth(param, MAX_INTERMEDIATES);
    X509_VERIFY_PARAM_set_purpose(param, X509_PURPOSE_ANY); /* see judge_use */
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, verify);
    return true;
}

static SSL_CTX *context(bool is_server, STACK_OF(X509) * chain, EVP_PKEY *key,
                        STACK_OF(X509) * roots, bool tls12) {
    SSL_CTX *const ctx = SSL_CTX_new(is_server ? TLS_server_method() : TLS_client_method());
    if (ctx == NULL) {
        return NULL;
    }
    bool is_set = set_protocol(ctx, tls12) && set_certificate(ctx, chain, key) &&
                  set_trust(ctx, roots, is_server);
    if (is_server) {
        SSL_CTX_set_alpn_select_cb(ctx, select_alpn, NULL);
    } else {
        is_set = is_set && SSL_CTX_set_alpn_protos(ctx, ALPN, sizeof(ALPN)) == 0;
    }
    if (!is_set) {
        SSL_CTX_free(ctx);
        return NULL;
    }
    return ctx;
}

static bool keep_domain(struct text id, void *of) {
    struct ident *const ident = of;
    ident->trust_domain = copy_text(ident->mem, ident_trust_domain(id));
    return true;
}

struct ident *ident_create(struct mem *mem, struct text chain_pem, struct text key_pem,
                           struct text roots_pem, bool tls12, char *error, size_t error_size) {
    ERR_clear_error();
    struct ident *ident = mem_alloc(mem, MEM_IDENTITY, sizeof(*ident));
    STACK_OF(X509) *const chain = read_certificates(chain_pem);
    STACK_OF(X509) *const roots = read_certificates(roots_pem);
    EVP_PKEY *const key = read_key(key_pem);
    const char *problem = NULL;
    if (ident == NULL) {
        problem = "out of memory";
    } else if (chain == NULL || roots == NULL || key == NULL) {
        problem = chain == NULL   ? "the certificate chain cannot be parsed"
                  : roots == NULL ? "the root certificates cannot be parsed"
                                  : "the private key cannot be parsed";
    } else {
        atomic_init(&ident->refs, 1);
        ident->mem = mem;
        ident->server = context(true, chain, key, roots, tls12);
        ident->client = context(false, chain, key, roots, tls12);
        (void)visit_ids(sk_X509_value(chain, 0), keep_domain, ident);
        if (ident->server == NULL || ident->client == NULL) {
            problem = "the TLS library refuses the certificate";
        }
    }
    if (problem != NULL) {
        say(error, error_size, problem);
        if (ident != NULL && ident->mem != NULL) {
            ident_unref(ident);
        } else {
            mem_free(mem, MEM_IDENTITY, ident);
        }
        ident = NULL;
    }
    sk_X509_pop_free(chain, X509_free);
    sk_X509_pop_free(roots, X509_free);
    EVP_PKEY_free(key);
    return ident;
}

struct ident *ident_ref(struct ident *ident) {
    if (ident != NULL) {
        atomic_fetch_add_explicit(&ident->refs, 1, memory_order_relaxed);
    }
    return ident;
}

void ident_unref(struct ident *ident) {
    if (ident == NULL || atomic_fetch_sub_explicit(&ident->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    SSL_CTX_free(ident->server);
    SSL_CTX_free(ident->client);
    mem_free(ident->mem, MEM_OTHER, ident->trust_domain);
    mem_free(ident->mem, MEM_IDENTITY, ident);
}
