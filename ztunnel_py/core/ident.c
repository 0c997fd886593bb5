/* SPDX-License-Identifier: Apache-2.0 */
/* See ident.h. */
#include "ident.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>

#define MAX_INTERMEDIATES 6
/* Bytes of certificates that a side may present, seven of 4 KiB and some more: each costs 0.1 ms,
 * for anybody who asks. */
#define PRESENTED_MAX 32768
#define SECURITY_LEVEL 2 /* no SHA-1, no RSA below 2048 bits */

static const char TLS13_SUITES[] = "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256";
static const char TLS12_CIPHERS[] =
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-GCM-SHA256:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256";
static const char SIGNATURES[] =
    "ecdsa_secp256r1_sha256:ecdsa_secp384r1_sha384:ecdsa_secp521r1_sha512:ed25519:"
    "rsa_pss_rsae_sha256:rsa_pss_rsae_sha384:rsa_pss_rsae_sha512:"
    "rsa_pkcs1_sha256:rsa_pkcs1_sha384:rsa_pkcs1_sha512";
/* The first that the library knows all of: OpenSSL 3.5, older ones; the FIPS providers of both. */
static const char *const GROUPS[] = {"X25519:P-256:P-384:X25519MLKEM768", "X25519:P-256:P-384",
                                     "P-256:P-384:X25519MLKEM768", "P-256:P-384"};
static const char POST_QUANTUM_GROUP[] = "X25519MLKEM768";
static const unsigned char ALPN[] = {2, 'h', '2'};
/* Certificates of a few hundred bytes do not get shorter, but slower (OpenSSL 3.2 and later). */
#ifdef SSL_OP_NO_TX_CERTIFICATE_COMPRESSION
#define PLAIN_CERTIFICATES \
    (SSL_OP_NO_TX_CERTIFICATE_COMPRESSION | SSL_OP_NO_RX_CERTIFICATE_COMPRESSION)
#else
#define PLAIN_CERTIFICATES 0
#endif

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

static bool set_groups(SSL_CTX *ctx, bool post_quantum) {
    if (post_quantum) {
        return SSL_CTX_set1_groups_list(ctx, POST_QUANTUM_GROUP) == 1;
    }
    bool is_set = false;
    for (size_t i = 0; i < ARRAY_LEN(GROUPS) && !is_set; i++) {
        is_set = SSL_CTX_set1_groups_list(ctx, GROUPS[i]) == 1;
    }
    return is_set;
}

static bool set_protocol(SSL_CTX *ctx, const struct ident_rules *rules) {
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                 SSL_OP_CIPHER_SERVER_PREFERENCE | PLAIN_CERTIFICATES);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    /* What is sent was issued so: the library neither looks up nor verifies a chain each time. */
    SSL_CTX_set_mode(ctx, SSL_MODE_AUTO_RETRY | SSL_MODE_NO_AUTO_CHAIN);
    SSL_CTX_clear_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE);
    SSL_CTX_set_security_level(ctx, SECURITY_LEVEL);
    (void)SSL_CTX_set_max_cert_list(ctx, PRESENTED_MAX);
    const int oldest = rules->tls12 ? TLS1_2_VERSION : TLS1_3_VERSION;
    return SSL_CTX_set_min_proto_version(ctx, oldest) == 1 &&
           SSL_CTX_set_max_proto_version(ctx, TLS1_3_VERSION) == 1 &&
           SSL_CTX_set_ciphersuites(ctx, TLS13_SUITES) == 1 &&
           SSL_CTX_set_cipher_list(ctx, TLS12_CIPHERS) == 1 &&
           SSL_CTX_set1_sigalgs_list(ctx, SIGNATURES) == 1 &&
           set_groups(ctx, rules->post_quantum) && SSL_CTX_set_num_tickets(ctx, 0) == 1;
}

static bool set_certificate(SSL_CTX *ctx, STACK_OF(X509) * chain, EVP_PKEY *key) {
    bool is_set = SSL_CTX_use_certificate(ctx, sk_X509_value(chain, 0)) == 1 &&
                  SSL_CTX_use_PrivateKey(ctx, key) == 1 && SSL_CTX_check_private_key(ctx) == 1;
    for (int i = 1; i < sk_X509_num(chain) && is_set; i++) {
        is_set = SSL_CTX_add1_chain_cert(ctx, sk_X509_value(chain, i)) == 1;
    }
    return is_set;
}

/* The anchor that issued a certificate. Those that share a name, as self-signed ones of Istio do,
 * are told apart by their keys; the library takes the first. */
static int find_anchor(X509 **anchor, X509_STORE_CTX *store, X509 *certificate) {
    STACK_OF(X509) *const named =
        X509_STORE_CTX_get1_certs(store, X509_get_issuer_name(certificate));
    const int n = sk_X509_num(named);
    *anchor = NULL;
    (void)ERR_set_mark();
    for (int i = 0; i < n && *anchor == NULL; i++) {
        X509 *const one = sk_X509_value(named, i);
        if (X509_check_issued(one, certificate) == X509_V_OK &&
            (n == 1 || X509_verify(certificate, X509_get0_pubkey(one)) == 1) &&
            X509_up_ref(one) == 1) {
            *anchor = one;
        }
    }
    (void)ERR_pop_to_mark();
    sk_X509_pop_free(named, X509_free);
    return *anchor != NULL;
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
    X509_STORE_set_get_issuer(store, find_anchor);
    X509_VERIFY_PARAM *const param = SSL_CTX_get0_param(ctx);
    X509_VERIFY_PARAM_set_flags(param, X509_V_FLAG_PARTIAL_CHAIN);
    X509_VERIFY_PARAM_set_depth(param, MAX_INTERMEDIATES);
    X509_VERIFY_PARAM_set_purpose(param, X509_PURPOSE_ANY); /* see judge_use */
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, ident_verify);
    return true;
}

static SSL_CTX *context(bool is_server, STACK_OF(X509) * chain, EVP_PKEY *key,
                        STACK_OF(X509) * roots, const struct ident_rules *rules) {
    SSL_CTX *const ctx = SSL_CTX_new(is_server ? TLS_server_method() : TLS_client_method());
    if (ctx == NULL) {
        return NULL;
    }
    bool is_set = set_protocol(ctx, rules) && set_certificate(ctx, chain, key) &&
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
    ident->trust_domain = ident_copy(ident->mem, ident_trust_domain(id));
    return true;
}

/* What is wrong, or NULL. */
static const char *fill(struct ident *ident, STACK_OF(X509) * chain, EVP_PKEY *key,
                        STACK_OF(X509) * roots, const struct ident_rules *rules) {
    if (chain == NULL) {
        return "the certificate chain cannot be parsed";
    }
    if (roots == NULL) {
        return "the root certificates cannot be parsed";
    }
    if (key == NULL) {
        return "the private key cannot be parsed";
    }
    const int seen = ident_visit(sk_X509_value(chain, 0), keep_domain, ident);
    if (seen < 0) {
        return "the certificate's subjectAltName cannot be parsed";
    }
    if (seen > 0 && ident->trust_domain == NULL) {
        return "out of memory"; /* and not: no trust domain to compare */
    }
    ident->server = context(true, chain, key, roots, rules);
    ident->client = context(false, chain, key, roots, rules);
    return ident->server != NULL && ident->client != NULL
               ? NULL
               : "the TLS library refuses the certificate";
}

struct ident *ident_create(struct mem *mem, struct text chain_pem, struct text key_pem,
                           struct text roots_pem, const struct ident_rules *rules, char *error,
                           size_t error_size) {
    ERR_clear_error();
    struct ident *ident = mem_alloc(mem, MEM_IDENTITY, sizeof(*ident));
    if (ident == NULL) {
        say(error, error_size, "out of memory");
        return NULL;
    }
    atomic_init(&ident->refs, 1);
    ident->mem = mem;
    ident->revocation = rules->revocation;
    STACK_OF(X509) *const chain = read_certificates(chain_pem);
    STACK_OF(X509) *const roots = read_certificates(roots_pem);
    EVP_PKEY *const key = read_key(key_pem);
    const char *const problem = fill(ident, chain, key, roots, rules);
    if (problem != NULL) {
        say(error, error_size, problem);
        ident_unref(ident);
        ident = NULL;
    }
    sk_X509_pop_free(chain, X509_free);
    sk_X509_pop_free(roots, X509_free);
    EVP_PKEY_free(key);
    ERR_clear_error(); /* whose TLS reads next in this thread would take it for its own */
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

const char *ident_problem(bool post_quantum) {
    ERR_clear_error();
    SSL_CTX *const ctx = SSL_CTX_new(TLS_method());
    const bool has_groups = ctx != NULL && set_groups(ctx, post_quantum);
    SSL_CTX_free(ctx);
    ERR_clear_error();
    if (ctx == NULL) {
        return "OpenSSL cannot speak TLS; check OPENSSL_CONF";
    }
    return has_groups || !post_quantum ? NULL
                                       : "X25519MLKEM768 is not known to OpenSSL, which has it "
                                         "from 3.5 on";
}
