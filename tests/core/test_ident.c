/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of ident.c: what can be an identity. */
#include "certificates.h"

#define CLIENT_ID "spiffe://td/ns/a/sa/client"
#define SERVER_ID "spiffe://td/ns/b/sa/server"

static const struct ident_rules PLAIN = {0};
static struct mem mem;

/* --- certificates that cannot be used --- */

static void refused(struct text chain, struct text key, struct text roots, const char *why) {
    char error[IDENT_ERROR_SIZE] = "";
    CHECK(ident_create(&mem, chain, key, roots, &PLAIN, error, sizeof(error)) == NULL);
    if (strstr(error, why) == NULL) {
        CHECK_STR_EQ(error, why);
    }
    CHECK_INT_EQ(mem.live[MEM_IDENTITY], 0);
    CHECK_INT_EQ(mem.live[MEM_OTHER], 0);
    CHECK_INT_EQ(ERR_peek_error(), 0);
}

TEST(what_is_no_certificate_is_told) {
    struct certified root = certify(NULL, &(struct certificate_traits){0});
    struct certified client_leaf = certify_id(&root, CLIENT_ID);
    struct certified server_leaf = certify_id(&root, SERVER_ID);
    const struct text chain = certificate_pem(&client_leaf);
    const struct text key = certificate_key_pem(&client_leaf);
    const struct text other = certificate_key_pem(&server_leaf);
    const struct text roots = certificate_pem(&root);
    const struct text cut = {chain.bytes, chain.len / 2};
    const struct text none = {"", 0};

    refused(none, key, roots, "the certificate chain cannot be parsed");
    refused(cut, key, roots, "the certificate chain cannot be parsed");
    refused(chain, none, roots, "the private key cannot be parsed");
    refused(chain, key, text_of("no root"), "the root certificates cannot be parsed");
    refused(chain, other, roots, "the TLS library refuses the certificate");

    certificate_text_free(chain);
    certificate_text_free(key);
    certificate_text_free(other);
    certificate_text_free(roots);
    certified_free(&root);
    certified_free(&client_leaf);
    certified_free(&server_leaf);
}

TEST(trust_domains_are_those_of_whole_spiffe_ids) {
    static const char *const NONE[] = {"",
                                       "spiffe://td",
                                       "spiffe://td/ns/a/sa",
                                       "spiffe://td/ns/a/sa/b/c",
                                       "spiffe://td/xx/a/sa/b",
                                       "https://td/ns/a/sa/b",
                                       "Spiffe://td/ns/a/sa/b"};
    for (size_t i = 0; i < ARRAY_LEN(NONE); i++) {
        CHECK(ident_trust_domain(text_of(NONE[i])).bytes == NULL);
    }

    CHECK(text_equal(ident_trust_domain(text_of(CLIENT_ID)), text_of("td")));
    CHECK(ident_trust_domain((struct text){"spiffe://td/ns/a/sa/b\0", 23}).bytes == NULL);
}
