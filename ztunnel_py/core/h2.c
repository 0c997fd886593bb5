/* SPDX-License-Identifier: Apache-2.0 */
/* See h2.h: life of a session, and commands. */
#include "h2.h"

#include <stdio.h>

#include "h2_callbacks.h"

#define CLIENT_HEADER_LIST 16384
#define SERVER_HEADER_LIST 65536
#define DEFAULT_WINDOW 65535
#define FIELDS_MAX 16
#define LIBRARY_RESETS (UINT64_C(1) << 30) /* see make_options */

/* --- life --- */

static nghttp2_option *make_options(void) {
    nghttp2_option *option = NULL;
    if (nghttp2_option_new(&option) != 0) {
        return NULL;
    }
    nghttp2_option_set_no_auto_window_update(option, 1);
    nghttp2_option_set_no_closed_streams(option, 1);
    nghttp2_option_set_max_deflate_dynamic_table_size(option, 4096);
    /* Resets are counted here (count_reset). The library would end a busy tunnel at 33 a second,
     * even if a hundred times as many streams finish. */
    nghttp2_option_set_stream_reset_rate_limit(option, LIBRARY_RESETS, LIBRARY_RESETS);
    return option;
}

static int queue_first_flight(struct h2 *h2, const struct core_config *config) {
    const nghttp2_settings_entry common[] = {
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, config->stream_window},
        {NGHTTP2_SETTINGS_MAX_FRAME_SIZE, config->frame_size},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, h2->header_list},
    };
    nghttp2_settings_entry entries[1 + ARRAY_LEN(common)];
    entries[0] = h2->is_client ? (nghttp2_settings_entry){NGHTTP2_SETTINGS_ENABLE_PUSH, 0}
                               : (nghttp2_settings_entry){NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS,
                                                          H2_STREAMS_UNLIMITED};
    memcpy(entries + 1, common, sizeof(common));
    int error =
        nghttp2_submit_settings(h2->session, NGHTTP2_FLAG_NONE, entries, ARRAY_LEN(entries));
    if (error == 0 && config->connection_window > DEFAULT_WINDOW) {
        error = nghttp2_session_set_local_window_size(h2->session, NGHTTP2_FLAG_NONE, 0,
                                                      (int32_t)config->connection_window);
    }
    return error;
}

bool h2_open(struct h2 *h2, const struct h2_ops *ops, struct loop *loop,
             const struct core_config *config, bool is_client) {
    memset(h2, 0, sizeof(*h2));
    h2->ops = ops;
    h2->loop = loop;
    h2->is_client = is_client;
    h2->max_served = config->max_streams_served;
    h2->header_list = is_client ? CLIENT_HEADER_LIST : SERVER_HEADER_LIST;
    h2->is_first_flight = true;
    list_init(&h2->streams);
    list_init(&h2->blocked);
    nghttp2_session_callbacks *const callbacks = h2_callbacks_create();
    nghttp2_option *const option = make_options();
    int error = NGHTTP2_ERR_NOMEM;
    if (callbacks != NULL && option != NULL) {
        error = is_client ? nghttp2_session_client_new2(&h2->session, callbacks, h2, option)
                          : nghttp2_session_server_new2(&h2->session, callbacks, h2, option);
    }
    nghttp2_session_callbacks_del(callbacks);
    nghttp2_option_del(option);
    if (error != 0) {
        h2->session = NULL;
        return false;
    }
    if (queue_first_flight(h2, config) != 0) {
        h2_close(h2);
        return false;
    }
    return true;
}

static void bury(struct stream *stream) {
    loop_bury(stream->loop, &stream->grave, MEM_STREAM, stream);
}

void h2_forget(struct h2 *h2, struct stream *stream) {
    stream->io.is_broken = true;
    stream->h2 = NULL;
    list_remove(&stream->link);
    list_remove(&stream->blocked);
    h2->n_streams--;
    h2_request_free(h2->loop->mem, stream->request);
    stream->request = NULL;
    if (stream->owner == NULL) {
        bury(stream);
    }
}

void h2_close(struct h2 *h2) {
    if (h2->session == NULL) {
        return;
    }
    nghttp2_session_del(h2->session);
    h2->session = NULL;
    while (!list_is_empty(&h2->streams)) {
        h2_forget(h2, CONTAINER_OF(h2->streams.next, struct stream, link));
    }
}

/* What the other side is told when the library gives up. */
static uint32_t code_of(int error) {
    switch (error) {
    case NGHTTP2_ERR_BAD_CLIENT_MAGIC:
    case NGHTTP2_ERR_PROTO:
        return NGHTTP2_PROTOCOL_ERROR;
    case NGHTTP2_ERR_NOMEM:
    case NGHTTP2_ERR_CALLBACK_FAILURE:
        return NGHTTP2_INTERNAL_ERROR;
    default: /* floods, one way or the other */
        return NGHTTP2_ENHANCE_YOUR_CALM;
    }
}

bool h2_receive(struct h2 *h2, const uint8_t *bytes, size_t len) {
    h2->is_receiving = true;
    const ssize_t n = nghttp2_session_mem_recv(h2->session, bytes, len);
    h2->is_receiving = false;
    if (n < 0) {
        h2->is_flooded = code_of((int)n) == NGHTTP2_ENHANCE_YOUR_CALM;
        (void)nghttp2_session_terminate_session(h2->session, code_of((int)n));
        return false;
    }
    return true;
}

bool h2_flush(struct h2 *h2) {
    if (h2->must_refuse) {
        h2->must_refuse = false;
        h2_goaway(h2, h2->last_served);
    }
    return nghttp2_session_send(h2->session) == 0 && !h2->is_over;
}

/* What the other side lets a stream send; may be negative. */
static int32_t h2_window_of(const struct stream *stream) {
    const struct h2 *const h2 = stream->h2;
    const int32_t own = nghttp2_session_get_stream_remote_window_size(h2->session, stream->id);
    const int32_t all = nghttp2_session_get_remote_window_size(h2->session);
    return own < all ? own : all;
}

/* --- commands --- */

static nghttp2_nv nv_of(struct text name, struct text value, uint8_t flags) {
    return (nghttp2_nv){
        .name = (uint8_t *)(uintptr_t)name.bytes,
        .value = (uint8_t *)(uintptr_t)(value.bytes != NULL ? value.bytes : ""),
        .namelen = name.len,
        .valuelen = value.len,
        .flags = flags,
    };
}

struct stream *h2_connect(struct h2 *h2, struct text authority, const struct h2_field *fields,
                          size_t n_fields) {
    nghttp2_nv nv[FIELDS_MAX];
    if (n_fields + 2 > FIELDS_MAX) {
        return NULL;
    }
    struct stream *const stream = mem_alloc(h2->loop->mem, MEM_STREAM, sizeof(*stream));
    if (stream == NULL) {
        return NULL;
    }
    nv[0] = nv_of(text_of(":method"), text_of("CONNECT"), NGHTTP2_NV_FLAG_NONE);
    nv[1] = nv_of(text_of(":authority"), authority, NGHTTP2_NV_FLAG_NONE);
    for (size_t i = 0; i < n_fields; i++) {
        const uint8_t flags = fields[i].is_unique ? NGHTTP2_NV_FLAG_NO_INDEX : NGHTTP2_NV_FLAG_NONE;
        nv[i + 2] = nv_of(fields[i].name, fields[i].value, flags);
    }
    stream_init(stream, h2);
    const nghttp2_data_provider provider = {.source.ptr = stream,
                                            .read_callback = h2_callbacks_read};
    stream->id = nghttp2_submit_request(h2->session, NULL, nv, n_fields + 2, &provider, stream);
    if (stream->id < 0) {
        mem_free(h2->loop->mem, MEM_STREAM, stream);
        return NULL;
    }
    list_push(&h2->streams, &stream->link);
    h2->n_streams++;
    return stream;
}

void h2_respond(struct stream *stream, unsigned status, const struct header *headers,
                size_t n_headers) {
    struct h2 *const h2 = stream->h2;
    if (stream->io.is_broken || stream->is_responding) {
        return;
    }
    char digits[4];
    (void)snprintf(digits, sizeof(digits), "%03u", status % 1000);
    nghttp2_nv nv[FIELDS_MAX];
    const size_t n = n_headers < FIELDS_MAX - 1 ? n_headers : FIELDS_MAX - 1;
    nv[0] = nv_of(text_of(":status"), (struct text){digits, 3}, NGHTTP2_NV_FLAG_NONE);
    for (size_t i = 0; i < n; i++) {
        nv[i + 1] = nv_of(headers[i].name, headers[i].value, NGHTTP2_NV_FLAG_NONE);
    }
    const nghttp2_data_provider provider = {.source.ptr = stream,
                                            .read_callback = h2_callbacks_read};
    stream->is_responding = true;
    stream->is_refused = status != 200;
    stream->local_ended = stream->is_refused;
    (void)nghttp2_submit_response(h2->session, stream->id, nv, n + 1,
                                  stream->is_refused ? NULL : &provider);
    h2->ops->wake(h2);
}

void h2_reset(struct stream *stream, uint32_t code) {
    if (!stream->was_reset && stream->h2 != NULL) {
        stream->was_reset = true;
        stream->io.is_broken = true;
        (void)nghttp2_submit_rst_stream(stream->h2->session, NGHTTP2_FLAG_NONE, stream->id, code);
        stream->h2->ops->wake(stream->h2);
    }
}

void h2_release(struct stream *stream) {
    if (stream->is_released) {
        return;
    }
    stream->is_released = true;
    stream->owner = NULL;
    stream->io.sink = NULL;
    if (stream->h2 == NULL) {
        bury(stream);
        return;
    }
    const bool remote_ends = stream->remote_ended || stream->remote_ends;
    const bool is_over = (stream->end_queued && remote_ends) || stream->is_refused;
    const bool end_waits = stream->end_queued && !stream->local_ended; /* a reset would overtake */
    if (!is_over && !stream->io.is_broken && !end_waits) {
        h2_reset(stream, NGHTTP2_CANCEL);
    }
}

void h2_ping(struct h2 *h2, bool is_drain) {
    h2->empty_frames = 0;
    h2->resets = 0;
    (void)nghttp2_submit_ping(h2->session, NGHTTP2_FLAG_NONE, is_drain ? H2_DRAIN_PING : H2_PING);
    h2->ops->wake(h2);
}

void h2_goaway(struct h2 *h2, int32_t last_stream) {
    uint8_t frame[H2_FRAME_HEADER + 8] = {0, 0, 8, NGHTTP2_GOAWAY};
    frame[H2_FRAME_HEADER] = (uint8_t)(last_stream >> 24);
    frame[H2_FRAME_HEADER + 1] = (uint8_t)(last_stream >> 16);
    frame[H2_FRAME_HEADER + 2] = (uint8_t)(last_stream >> 8);
    frame[H2_FRAME_HEADER + 3] = (uint8_t)last_stream;
    h2->is_refusing = h2->is_refusing || last_stream != H2_LAST_STREAM;
    (void)h2_flush(h2); /* keeps the order of what was said before */
    h2->ops->emit(h2, frame, sizeof(frame));
}

void h2_refuse(struct h2 *h2) {
    h2->is_refusing = true;
    h2->must_refuse = true;
    h2->ops->wake(h2);
}

uint32_t h2_max_streams(const struct h2 *h2) {
    return nghttp2_session_get_remote_settings(h2->session,
                                               NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
}

bool h2_can_open(const struct h2 *h2) {
    return nghttp2_session_check_request_allowed(h2->session) != 0;
}

size_t h2_window(const struct stream *stream) {
    const struct h2 *const h2 = stream->h2;
    if (h2 == NULL || h2->is_receiving || h2->is_congested) {
        return 0;
    }
    const int32_t window = h2_window_of(stream);
    return window > 0 ? (size_t)window : 0;
}

void h2_send(struct stream *stream) {
    if (stream->is_deferred) {
        stream->is_deferred = false;
        (void)nghttp2_session_resume_data(stream->h2->session, stream->id);
    }
    (void)nghttp2_session_send(stream->h2->session);
}

void h2_end(struct stream *stream) {
    if (stream->end_queued || stream->h2 == NULL) {
        return;
    }
    stream->end_queued = true;
    stream->h2->ops->wake(stream->h2);
    if (h2_window_of(stream) <= 0) {
        /* The library sends no DATA without a window, not even the empty frame that only ends the
         * stream. An empty trailer it does send, and on_send makes that frame of it. */
        stream->local_ended = true;
        (void)nghttp2_submit_trailer(stream->h2->session, stream->id, NULL, 0);
        return;
    }
    if (stream->is_deferred) {
        stream->is_deferred = false;
        (void)nghttp2_session_resume_data(stream->h2->session, stream->id);
    }
}

void h2_consumed(struct stream *stream, size_t n) {
    if (!stream->remote_ended && stream->h2 != NULL) {
        (void)nghttp2_session_consume_stream(stream->h2->session, stream->id, n);
        stream->h2->ops->wake(stream->h2);
    }
}
