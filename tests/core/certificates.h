/* SPDX-License-Identifier: Apache-2.0 */
/* Certificates made by a test: an authority, and leaves of it, as PEM. */
#ifndef ZT_CERTIFICATES_H
#define ZT_CERTIFICATES_H

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include "check.h"
#include "ident.h"

#define DAY_S (24 * 3600)

/* A key with its certificate. */
struct certified {
    EVP_PKEY *key;
    X509 *certificate;
};

/* What is out of the ordinary about a certificate. */
struct certificate_traits {
    const char *uri;   /* its URI name, NULL: none */
    const char *usage; /* extended key usage, NULL: server and client */
    long from_s, to_s; /* validity relative to now; both 0: a day either way */
    bool is_rsa;
    bool is_between;       /* an authority that `issuer` certified */
    const char *key_usage; /* of an authority; NULL: certificates and lists */
};

static inline void certificate_extend(X509 *certificate, X509 *issuer, int nid, const char *value) {
    X509V3_CTX context;
    X509V3_set_ctx(&context, issuer, certificate, NULL, NULL, 0);
    X509_EXTENSION *const extension = X509V3_EXT_conf_nid(NULL, &context, nid, value);
    CHECK(extension != NULL && X509_add_ext(certificate, extension, -1) == 1);
    X509_EXTENSION_free(extension);
}

/* One of `issuer`; an authority that issued itself without one. */
static inline struct certified certify(const struct certified *issuer,
                                       const struct certificate_traits *traits) {
    static long serial = 1;
    const bool is_root = issuer == NULL;
    const bool is_authority = is_root || traits->is_between;
    struct certified made = {
        .key = traits->is_rsa ? EVP_PKEY_Q_keygen(NULL, NULL, "RSA", (size_t)2048)
                              : EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256"),
        .certificate = X509_new(),
    };
    X509 *const it = made.certificate;
    CHECK(made.key != NULL && it != NULL);
    X509 *const above = is_root ? it : issuer->certificate;
    const bool is_usual = traits->from_s == 0 && traits->to_s == 0;
    CHECK(X509_set_version(it, 2) == 1 && X509_set_pubkey(it, made.key) == 1);
    CHECK(ASN1_INTEGER_set(X509_get_serialNumber(it), serial++) == 1);
    CHECK(X509_gmtime_adj(X509_getm_notBefore(it), is_usual ? -DAY_S : traits->from_s) != NULL);
    CHECK(X509_gmtime_adj(X509_getm_notAfter(it), is_usual ? DAY_S : traits->to_s) != NULL);
    const char *const name = is_root ? "root" : is_authority ? "between" : "leaf";
    CHECK(X509_NAME_add_entry_by_txt(X509_get_subject_name(it), "O", MBSTRING_ASC,
                                     (const unsigned char *)name, -1, -1, 0) == 1);
    CHECK(X509_set_issuer_name(it, X509_get_subject_name(above)) == 1);
    certificate_extend(it, above, NID_basic_constraints,
                       is_authority ? "critical,CA:TRUE" : "critical,CA:FALSE");
    const char *const authoritys =
        traits->key_usage != NULL ? traits->key_usage : "critical,keyCertSign,cRLSign";
    certificate_extend(it, above, NID_key_usage,
                       is_authority ? authoritys : "critical,digitalSignature");
    if (!is_authority) {
        certificate_extend(it, above, NID_ext_key_usage,
                           traits->usage != NULL ? traits->usage : "serverAuth,clientAuth");
    }
    if (traits->uri != NULL) {
        char uri[256];
        (void)snprintf(uri, sizeof(uri), "URI:%s", traits->uri);
        certificate_extend(it, above, NID_subject_alt_name, uri);
    }
    CHECK(X509_sign(it, is_root ? made.key : issuer->key, EVP_sha256()) > 0);
    return made;
}

/* A leaf with that SPIFFE id. */
static inline struct certified certify_id(const struct certified *issuer, const char *id) {
    const struct certificate_traits traits = {.uri = id};
    return certify(issuer, &traits);
}

static inline void certified_free(struct certified *certified) {
    EVP_PKEY_free(certified->key);
    X509_free(certified->certificate);
}

/* The text in a memory BIO, which it frees; free its bytes. */
static inline struct text certificate_text(BIO *bio) {
    char *bytes = NULL;
    const long len = BIO_get_mem_data(bio, &bytes);
    char *const copy = malloc((size_t)len);
    CHECK(len > 0 && copy != NULL);
    memcpy(copy, bytes, (size_t)len);
    BIO_free(bio);
    return (struct text){copy, (size_t)len};
}

static inline struct text certificate_pem(const struct certified *certified) {
    BIO *const bio = BIO_new(BIO_s_mem());
    CHECK(bio != NULL && PEM_write_bio_X509(bio, certified->certificate) == 1);
    return certificate_text(bio);
}

static inline struct text certificate_key_pem(const struct certified *certified) {
    BIO *const bio = BIO_new(BIO_s_mem());
    CHECK(bio != NULL &&
          PEM_write_bio_PrivateKey(bio, certified->key, NULL, NULL, 0, NULL, NULL) == 1);
    return certificate_text(bio);
}

/* A revocation list (DER) of `issuer` that lists one certificate, if any; signed by `signer`. Its
 * next update was due yesterday. */
static inline struct text certificate_crl(const struct certified *issuer,
                                          const struct certified *revoked,
                                          const struct certified *signer) {
    X509_CRL *const crl = X509_CRL_new();
    ASN1_TIME *const time = X509_gmtime_adj(NULL, -DAY_S);
    CHECK(crl != NULL && X509_CRL_set_version(crl, 1) == 1);
    CHECK(X509_CRL_set_issuer_name(crl, X509_get_subject_name(issuer->certificate)) == 1);
    CHECK(X509_CRL_set1_lastUpdate(crl, time) == 1 && X509_CRL_set1_nextUpdate(crl, time) == 1);
    if (revoked != NULL) {
        X509_REVOKED *const entry = X509_REVOKED_new();
        CHECK(X509_REVOKED_set_serialNumber(entry, X509_get_serialNumber(revoked->certificate)));
        CHECK(X509_REVOKED_set_revocationDate(entry, time) == 1);
        CHECK(X509_CRL_add0_revoked(crl, entry) == 1);
    }
    CHECK(X509_CRL_sort(crl) == 1 && X509_CRL_sign(crl, signer->key, EVP_sha256()) > 0);
    ASN1_TIME_free(time);
    BIO *const bio = BIO_new(BIO_s_mem());
    CHECK(bio != NULL && i2d_X509_CRL_bio(bio, crl) == 1);
    X509_CRL_free(crl);
    return certificate_text(bio);
}

static inline void certificate_text_free(struct text text) {
    free((void *)(uintptr_t)text.bytes);
}

/* An identity from a leaf and the root that it trusts. */
static inline struct ident *certificate_ident(struct mem *of, const struct certified *leaf,
                                              const struct certified *root,
                                              const struct ident_rules *rules) {
    const struct text chain = certificate_pem(leaf);
    const struct text key = certificate_key_pem(leaf);
    const struct text roots = certificate_pem(root);
    char error[IDENT_ERROR_SIZE] = "";
    struct ident *const ident = ident_create(of, chain, key, roots, rules, error, sizeof(error));
    certificate_text_free(chain);
    certificate_text_free(key);
    certificate_text_free(roots);
    return ident;
}

#endif
