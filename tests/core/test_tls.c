/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of tls.c and ident_check.c: two sides in memory, and sides that are not ours. */
#include "tls.h"

#include "certificates.h"

#define CLIENT_ID "spiffe://td/ns/a/sa/client"
#define SERVER_ID "spiffe://td/ns/b/sa/server"
#define BLOCK ((size_t)4096)

static const struct ident_rules PLAIN = {0};
static const struct ident_rules WITH_TLS12 = {.tls12 = true};
static const struct ident_rules QUANTUM = {.post_quantum = true};
static struct mem mem;
static struct stock stock = {.block_size = BLOCK};
static struct certified root, client_leaf, server_leaf;
static struct tls client, server;
static struct text accepted[] = {{SERVER_ID, sizeof(SERVER_ID) - 1}};

static void make_certificates(void) {
    CHECK(tls_init());
    root = certify(NULL, &(struct certificate_traits){0});
    client_leaf = certify_id(&root, CLIENT_ID);
    server_leaf = certify_id(&root, SERVER_ID);
}

static void open_side(struct tls *tls, const struct certified *leaf,
                      const struct certified *trusted, bool is_client,
                      const struct ident_rules *rules) {
    struct ident *const ident = certificate_ident(&mem, leaf, trusted, rules);
    CHECK(ident != NULL);
    CHECK(tls_open(tls, &mem, &stock, ident, is_client, accepted, ARRAY_LEN(accepted)));
    ident_unref(ident);
}

static void set_up(void) {
    make_certificates();
    open_side(&client, &client_leaf, &root, true, &PLAIN);
    open_side(&server, &server_leaf, &root, false, &PLAIN);
}

static void tear_down(void) {
    tls_close(&client);
    tls_close(&server);
    tls_close(&server); /* harmless */
    stock_clear(&mem, &stock);
    certified_free(&root);
    certified_free(&client_leaf);
    certified_free(&server_leaf);
    for (int kind = 0; kind < MEM_KINDS; kind++) {
        CHECK_INT_EQ(mem.live[kind], 0);
    }
    CHECK_INT_EQ(mem.buffered, 0);
}

/* What a side has to send. Free it. */
static uint8_t *take_out(struct tls *from, size_t *len) {
    struct iovec iov[4];
    uint8_t *const bytes = malloc(from->out_len + 1);
    CHECK(bytes != NULL);
    *len = 0;
    while (from->out_len > 0) {
        const int n = tls_out(from, iov, 4);
        size_t taken = 0;
        for (int i = 0; i < n; i++) {
            memcpy(bytes + *len + taken, iov[i].iov_base, iov[i].iov_len);
            taken += iov[i].iov_len;
        }
        tls_sent(from, taken);
        *len += taken;
    }
    return bytes;
}

/* Why a side gave up; the library's reasons are gone by its next call. */
static char client_problem[IDENT_ERROR_SIZE + 64];
static char server_problem[IDENT_ERROR_SIZE + 64];

/* One side's bytes to the other's handshake, in pieces. */
static enum tls_state pass(struct tls *from, struct tls *to, size_t piece) {
    size_t len = 0;
    enum tls_state state = TLS_MORE;
    uint8_t *const bytes = take_out(from, &len);
    for (size_t at = 0; at < len && state == TLS_MORE;) {
        const size_t n = len - at < piece ? len - at : piece;
        tls_feed(to, bytes + at, n);
        state = tls_shake(to);
        at += n;
    }
    free(bytes);
    if (state == TLS_FAILED) {
        tls_problem(to, to == &client ? client_problem : server_problem, sizeof(client_problem));
    }
    return state;
}

struct outcome {
    enum tls_state client, server;
};

static struct outcome shake_in(size_t piece) {
    struct outcome outcome = {tls_shake(&client), TLS_MORE};
    for (int i = 0; i < 6; i++) {
        outcome.server =
            outcome.server == TLS_MORE ? pass(&client, &server, piece) : outcome.server;
        outcome.client =
            outcome.client == TLS_MORE ? pass(&server, &client, piece) : outcome.client;
    }
    return outcome;
}

static struct outcome shake(void) {
    return shake_in(SIZE_MAX);
}

/* Sends, and reads all that arrives. */
static void carry(struct tls *from, struct tls *to, const uint8_t *bytes, size_t len) {
    size_t wire_len = 0;
    size_t got = 0;
    CHECK(tls_write(from, bytes, len));
    uint8_t *const wire = take_out(from, &wire_len);
    uint8_t *const plain = malloc(len);
    tls_feed(to, wire, wire_len);
    for (size_t n = 0; got < len; got += n) {
        CHECK(tls_read(to, plain + got, len - got, &n) == TLS_DONE);
    }
    CHECK_MEM_EQ(plain, got, bytes, len);
    free(plain);
    free(wire);
}

/* --- handshakes that succeed --- */

TEST(both_know_who_the_other_is) {
    set_up();

    const struct outcome outcome = shake();

    CHECK(outcome.client == TLS_DONE && outcome.server == TLS_DONE);
    CHECK_STR_EQ(client.check.remote, SERVER_ID);
    CHECK_STR_EQ(server.check.remote, CLIENT_ID);
    CHECK_STR_EQ(SSL_get_version(client.ssl), "TLSv1.3");
    CHECK_STR_EQ(SSL_get_cipher(client.ssl), "TLS_AES_256_GCM_SHA384");
    tear_down();
}

TEST(a_handshake_in_single_bytes_is_the_same) {
    set_up();

    const struct outcome outcome = shake_in(1);

    CHECK(outcome.client == TLS_DONE && outcome.server == TLS_DONE);
    tear_down();
}

TEST(bytes_go_both_ways_in_records_and_in_one_go) {
    static uint8_t much[300000];
    set_up();
    CHECK(shake().server == TLS_DONE);
    for (size_t i = 0; i < sizeof(much); i++) {
        much[i] = (uint8_t)(i * 31 + i / 1000);
    }

    carry(&client, &server, much, sizeof(much));
    carry(&server, &client, much, 1);
    carry(&client, &server, much, 16384);
    carry(&server, &client, much, 16385);

    tear_down();
}

TEST(nothing_is_kept_of_an_idle_connection) {
    set_up();
    CHECK(shake().server == TLS_DONE);
    carry(&client, &server, (const uint8_t *)"hello", 5);

    tls_rest(&client);
    stock_clear(&mem, &stock);
    CHECK_INT_EQ(mem.buffered, 0);

    carry(&client, &server, (const uint8_t *)"again", 5);
    tear_down();
}

TEST(close_notify_is_an_orderly_end) {
    uint8_t byte;
    size_t n = 0;
    size_t len = 0;
    set_up();
    CHECK(shake().server == TLS_DONE);

    tls_shut(&client);
    uint8_t *const wire = take_out(&client, &len);
    tls_feed(&server, wire, len);

    CHECK(tls_read(&server, &byte, 1, &n) == TLS_CLOSED);
    free(wire);
    tear_down();
}

TEST(bytes_that_are_no_record_break_it) {
    uint8_t byte;
    size_t n = 0;
    set_up();
    CHECK(shake().server == TLS_DONE);

    tls_feed(&server, (const uint8_t *)"nonsense nonsense", 17);

    CHECK(tls_read(&server, &byte, 1, &n) == TLS_FAILED);
    tls_problem(&server, server_problem, sizeof(server_problem));
    CHECK(strlen(server_problem) > 0);
    tear_down();
}

TEST(an_expired_root_is_believed) {
    make_certificates();
    struct certified old =
        certify(NULL, &(struct certificate_traits){.from_s = -10 * DAY_S, .to_s = -DAY_S});
    struct certified leaf = certify_id(&old, SERVER_ID);
    open_side(&client, &client_leaf, &old, true, &PLAIN);
    open_side(&server, &leaf, &root, false, &PLAIN);

    const struct outcome outcome = shake();

    CHECK(outcome.client == TLS_DONE && outcome.server == TLS_DONE);
    certified_free(&old);
    certified_free(&leaf);
    tear_down();
}

/* --- handshakes that fail --- */

static void client_refuses(const char *why) {
    const struct outcome outcome = shake();
    CHECK(outcome.client == TLS_FAILED);
    CHECK(outcome.server != TLS_DONE);
    CHECK(client.check.remote == NULL);
    if (strstr(client_problem, why) == NULL) {
        CHECK_STR_EQ(client_problem, why);
    }
}

static void server_refuses(const char *why) {
    const struct outcome outcome = shake();
    CHECK(outcome.server == TLS_FAILED);
    if (strstr(server_problem, why) == NULL) {
        CHECK_STR_EQ(server_problem, why);
    }
}

TEST(a_server_that_is_somebody_else_is_refused) {
    make_certificates();
    struct certified other = certify_id(&root, "spiffe://td/ns/b/sa/other");
    open_side(&client, &client_leaf, &root, true, &PLAIN);
    open_side(&server, &other, &root, false, &PLAIN);

    const struct outcome outcome = shake();

    CHECK(outcome.client == TLS_FAILED);
    CHECK_STR_EQ(client_problem,
                 "identity verification error: peer did not present the expected SAN (" SERVER_ID
                 "), got spiffe://td/ns/b/sa/other");
    certified_free(&other);
    tear_down();
}

TEST(a_server_without_an_identity_is_refused) {
    make_certificates();
    struct certified other = certify(&root, &(struct certificate_traits){0});
    open_side(&client, &client_leaf, &root, true, &PLAIN);
    open_side(&server, &other, &root, false, &PLAIN);

    client_refuses("got none");

    certified_free(&other);
    tear_down();
}

TEST(a_server_of_another_root_is_refused) {
    make_certificates();
    struct certified stranger = certify(NULL, &(struct certificate_traits){0});
    struct certified other = certify_id(&stranger, SERVER_ID);
    open_side(&client, &client_leaf, &root, true, &PLAIN);
    open_side(&server, &other, &root, false, &PLAIN);

    client_refuses("invalid peer certificate");

    certified_free(&stranger);
    certified_free(&other);
    tear_down();
}

TEST(a_client_of_another_trust_domain_is_refused) {
    make_certificates();
    struct certified other = certify_id(&root, "spiffe://elsewhere/ns/a/sa/client");
    open_side(&client, &other, &root, true, &PLAIN);
    open_side(&server, &server_leaf, &root, false, &PLAIN);

    server_refuses("expected trustdomain (td), got spiffe://elsewhere");

    certified_free(&other);
    tear_down();
}

TEST(a_client_without_an_identity_is_refused) {
    make_certificates();
    struct certified other = certify(&root, &(struct certificate_traits){.uri = "https://a/b"});
    open_side(&client, &other, &root, true, &PLAIN);
    open_side(&server, &server_leaf, &root, false, &PLAIN);

    server_refuses("the client certificate has no SPIFFE identity");

    certified_free(&other);
    tear_down();
}

TEST(an_expired_leaf_is_refused) {
    make_certificates();
    struct certified old = certify(
        &root,
        &(struct certificate_traits){.uri = CLIENT_ID, .from_s = -2 * DAY_S, .to_s = -DAY_S});
    open_side(&client, &old, &root, true, &PLAIN);
    open_side(&server, &server_leaf, &root, false, &PLAIN);

    server_refuses("certificate has expired");

    certified_free(&old);
    tear_down();
}

TEST(a_leaf_that_is_not_valid_yet_is_refused) {
    make_certificates();
    struct certified early = certify(
        &root, &(struct certificate_traits){.uri = SERVER_ID, .from_s = DAY_S, .to_s = 2 * DAY_S});
    open_side(&client, &client_leaf, &root, true, &PLAIN);
    open_side(&server, &early, &root, false, &PLAIN);

    client_refuses("not yet valid");

    certified_free(&early);
    tear_down();
}

TEST(a_server_with_the_usage_of_a_client_is_refused) {
    make_certificates();
    struct certified other =
        certify(&root, &(struct certificate_traits){.uri = SERVER_ID, .usage = "clientAuth"});
    open_side(&client, &client_leaf, &root, true, &PLAIN);
    open_side(&server, &other, &root, false, &PLAIN);

    client_refuses("invalid peer certificate");

    certified_free(&other);
    tear_down();
}

TEST(a_client_with_the_usage_of_a_server_is_refused) {
    make_certificates();
    struct certified other =
        certify(&root, &(struct certificate_traits){.uri = CLIENT_ID, .usage = "serverAuth"});
    open_side(&client, &other, &root, true, &PLAIN);
    open_side(&server, &server_leaf, &root, false, &PLAIN);

    server_refuses("invalid peer certificate");

    certified_free(&other);
    tear_down();
}

/* --- sides that are not ours --- */

/* A client's side whose library context the test has changed. */
static SSL_CTX *change_client(void) {
    set_up();
    return client.ident->client;
}

static void reopen_client(void) {
    struct ident *const ident = ident_ref(client.ident);
    tls_close(&client);
    CHECK(tls_open(&client, &mem, &stock, ident, true, accepted, ARRAY_LEN(accepted)));
    ident_unref(ident);
}

TEST(a_client_without_a_certificate_is_refused) {
    make_certificates();
    open_side(&server, &server_leaf, &root, false, &PLAIN);
    open_side(&client, &client_leaf, &root, true, &PLAIN);
    SSL_CTX *const bare = SSL_CTX_new(TLS_client_method());
    SSL_CTX *const own = client.ident->client;
    client.ident->client = bare;
    reopen_client();

    const struct outcome outcome = shake();

    CHECK(outcome.server == TLS_FAILED && server.check.remote == NULL);
    CHECK(strstr(server_problem, "peer did not return a certificate") != NULL);
    client.ident->client = own;
    SSL_CTX_free(bare);
    tear_down();
}

TEST(a_client_that_offers_only_http1_is_refused) {
    static const unsigned char HTTP1[] = "\x08http/1.1";
    SSL_CTX *const ctx = change_client();
    CHECK(SSL_CTX_set_alpn_protos(ctx, HTTP1, sizeof(HTTP1) - 1) == 0);
    reopen_client();

    server_refuses("no application protocol");

    tear_down();
}

TEST(a_client_that_offers_http1_and_h2_gets_h2) {
    static const unsigned char BOTH[] = "\x08http/1.1\x02h2";
    const unsigned char *chosen = NULL;
    unsigned len = 0;
    SSL_CTX *const ctx = change_client();
    CHECK(SSL_CTX_set_alpn_protos(ctx, BOTH, sizeof(BOTH) - 1) == 0);
    reopen_client();

    CHECK(shake().server == TLS_DONE);

    SSL_get0_alpn_selected(server.ssl, &chosen, &len);
    CHECK_MEM_EQ(chosen, len, "h2", 2);
    tear_down();
}

TEST(a_client_that_offers_no_protocol_is_accepted) {
    SSL_CTX *const ctx = change_client();
    CHECK(SSL_CTX_set_alpn_protos(ctx, NULL, 0) == 0);
    reopen_client();

    CHECK(shake().server == TLS_DONE);

    tear_down();
}

TEST(a_client_that_knows_chacha_only_is_refused) {
    SSL_CTX *const ctx = change_client();
    CHECK(SSL_CTX_set_ciphersuites(ctx, "TLS_CHACHA20_POLY1305_SHA256") == 1);
    reopen_client();

    server_refuses("no shared cipher");

    tear_down();
}

TEST(a_client_that_knows_tls12_only_is_refused) {
    SSL_CTX *const ctx = change_client();
    CHECK(SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION) == 1);
    CHECK(SSL_CTX_set_max_proto_version(ctx, TLS1_2_VERSION) == 1);
    reopen_client();

    server_refuses("unsupported protocol");

    tear_down();
}

TEST(tls12_is_spoken_where_it_is_allowed) {
    make_certificates();
    open_side(&client, &client_leaf, &root, true, &WITH_TLS12);
    open_side(&server, &server_leaf, &root, false, &WITH_TLS12);
    CHECK(SSL_CTX_set_max_proto_version(client.ident->client, TLS1_2_VERSION) == 1);
    reopen_client();

    const struct outcome outcome = shake();

    CHECK(outcome.client == TLS_DONE && outcome.server == TLS_DONE);
    CHECK_STR_EQ(SSL_get_version(server.ssl), "TLSv1.2");
    CHECK_STR_EQ(server.check.remote, CLIENT_ID);
    carry(&client, &server, (const uint8_t *)"hello", 5);
    tear_down();
}

TEST(no_session_is_resumed) {
    set_up();
    CHECK(shake().client == TLS_DONE);

    CHECK_INT_EQ(SSL_SESSION_is_resumable(SSL_get0_session(client.ssl)), 0);

    tear_down();
}

/* What both sides agreed on, if they are `ours` and a client is `theirs`. */
static struct outcome shake_as(const struct ident_rules *ours, const struct ident_rules *theirs) {
    make_certificates();
    open_side(&client, &client_leaf, &root, true, theirs);
    open_side(&server, &server_leaf, &root, false, ours);
    return shake();
}

static const char *agreed_group(void) {
    return SSL_group_to_name(server.ssl, (int)SSL_get_negotiated_group(server.ssl));
}

TEST(keys_are_exchanged_by_x25519_unless_told_otherwise) {
    CHECK(shake_as(&PLAIN, &PLAIN).server == TLS_DONE);

    CHECK_STR_EQ(agreed_group(), "x25519");
    CHECK(ident_problem(false) == NULL);
    tear_down();
}

TEST(post_quantum_is_that_or_nothing) {
    if (ident_problem(true) != NULL) {
        CHECK(strstr(ident_problem(true), "from 3.5 on") != NULL);
        make_certificates();
        CHECK(certificate_ident(&mem, &server_leaf, &root, &QUANTUM) == NULL);
        tear_down();
        return;
    }

    CHECK(shake_as(&QUANTUM, &QUANTUM).server == TLS_DONE);
    CHECK_STR_EQ(agreed_group(), "X25519MLKEM768");
    tear_down();
    CHECK(shake_as(&QUANTUM, &PLAIN).server == TLS_DONE); /* who knows it too is asked again */
    SSL_CTX_set1_groups_list(client.ident->client, "X25519:P-256");
    reopen_client();
    tls_close(&server);
    open_side(&server, &server_leaf, &root, false, &QUANTUM);
    CHECK(shake().server == TLS_FAILED);
    tear_down();
}

/* --- memory --- */

TEST(every_allocation_of_a_handshake_may_fail) {
    bool is_done = false;
    uint64_t n = 0;
    CHECK(tls_init());
    while (!is_done) {
        make_certificates();
        mem_fail_at(++n);
        struct ident *const one = certificate_ident(&mem, &client_leaf, &root, &PLAIN);
        struct ident *const two = certificate_ident(&mem, &server_leaf, &root, &PLAIN);
        const bool is_open =
            one != NULL && two != NULL &&
            tls_open(&client, &mem, &stock, one, true, accepted, ARRAY_LEN(accepted)) &&
            tls_open(&server, &mem, &stock, two, false, accepted, ARRAY_LEN(accepted));
        is_done = is_open && shake().server == TLS_DONE && mem_has_failed() == false;
        mem_fail_at(0);
        ident_unref(one);
        ident_unref(two);
        tear_down();
        memset(&client, 0, sizeof(client));
        memset(&server, 0, sizeof(server));
    }
    CHECK(n > 5);
}
