/* SPDX-License-Identifier: Apache-2.0 */
/* See h2_callbacks.h: what the library reports, then what it sends. */
#include "h2_callbacks.h"

#define HEADER_OVERHEAD 32 /* RFC 9113, section 6.5.2 */
#define RESETS_TOLERATED 1000
#define RECORD_SIZE 16384 /* plain bytes of a TLS record */
#define SETTINGS_ENTRY 6
#define EMPTY_FRAMES_TOLERATED 10000 /* frames that carry nothing, between two of our PINGs */

static struct stream *stream_of(struct h2 *h2, int32_t id) {
    return id == 0 ? NULL : nghttp2_session_get_stream_user_data(h2->session, id);
}

/* --- what the library reports --- */

static int flooded(struct h2 *h2) {
    h2->is_flooded = true;
    (void)nghttp2_session_terminate_session(h2->session, NGHTTP2_ENHANCE_YOUR_CALM);
    return 0;
}

/* Sees the header of each frame before its payload is read: a header block that is far too long
 * ends the connection by its beginning. */
static int on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *hd, void *user) {
    (void)session;
    struct h2 *const h2 = user;
    if (hd->type == NGHTTP2_HEADERS) {
        h2->block_len = hd->length;
    } else if (hd->type == NGHTTP2_CONTINUATION) {
        h2->block_len += hd->length;
    } else {
        return 0;
    }
    return h2->block_len > 4 * (size_t)h2->header_list ? flooded(h2) : 0;
}

/* Of each response to a stream that wants it, also of those that are not final: the last counts. */
static int expect_baggage(struct h2 *h2, struct stream *stream) {
    if (stream == NULL || !stream->wants_baggage || stream->is_responding) {
        return 0;
    }
    h2_request_free(h2->loop->mem, stream->request);
    stream->request = h2_request_create(h2->loop->mem);
    return stream->request != NULL ? 0 : NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
    struct h2 *const h2 = user;
    if (h2->is_client) {
        return expect_baggage(h2, stream_of(h2, frame->hd.stream_id));
    }
    if (frame->headers.cat != NGHTTP2_HCAT_REQUEST) {
        return 0;
    }
    const int32_t id = frame->hd.stream_id;
    if (h2->is_refusing || h2->n_streams >= h2->max_served) {
        return nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, id, NGHTTP2_REFUSED_STREAM);
    }
    struct stream *const stream = mem_alloc(h2->loop->mem, MEM_STREAM, sizeof(*stream));
    struct h2_request *const request = h2_request_create(h2->loop->mem);
    if (stream == NULL || request == NULL) {
        mem_free(h2->loop->mem, MEM_STREAM, stream);
        h2_request_free(h2->loop->mem, request);
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    }
    stream_init(stream, h2);
    stream->id = id;
    stream->request = request;
    list_push(&h2->streams, &stream->link);
    h2->n_streams++;
    return nghttp2_session_set_stream_user_data(session, id, stream);
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_len, const uint8_t *value, size_t value_len, uint8_t flags,
                     void *user) {
    (void)session;
    (void)flags;
    struct h2 *const h2 = user;
    struct stream *const stream = stream_of(h2, frame->hd.stream_id);
    if (stream == NULL) {
        return 0;
    }
    const struct text name_text = {(const char *)name, name_len};
    const struct text value_text = {(const char *)value, value_len};
    if (h2->is_client && text_equal(name_text, text_of(":status")) && value_len == 3) {
        stream->status =
            (uint16_t)((value[0] - '0') * 100 + (value[1] - '0') * 10 + (value[2] - '0'));
    }
    struct h2_request *const request = stream->request;
    if (request == NULL || stream->is_oversized) {
        return 0;
    }
    request->list_size += name_len + value_len + HEADER_OVERHEAD;
    if (request->list_size > h2->header_list) {
        stream->is_oversized = true;
        return 0;
    }
    return h2_request_add(h2->loop->mem, request, name_text, value_text)
               ? 0
               : NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
}

static void request_complete(struct h2 *h2, struct stream *stream) {
    if (stream->request == NULL) {
        return;
    }
    h2->last_served = stream->id > h2->last_served ? stream->id : h2->last_served;
    if (stream->is_oversized) {
        h2_respond(stream, 431, NULL, 0);
    } else {
        h2->ops->requested(h2, stream, stream->request);
    }
    h2_request_free(h2->loop->mem, stream->request);
    stream->request = NULL;
}

static void headers_complete(struct h2 *h2, struct stream *stream, const nghttp2_frame *frame) {
    if (!h2->is_client) {
        if (frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
            request_complete(h2, stream);
        }
    } else if (stream->status >= 200 && !stream->is_responding) {
        stream->is_responding = true; /* later headers are trailers */
        if (stream->owner != NULL) {
            stream->ops->responded(stream, stream->status);
        }
        h2_request_free(h2->loop->mem, stream->request);
        stream->request = NULL;
    }
}

static void ended(struct h2 *h2, struct stream *stream) {
    h2->ops->settle(h2, stream);
    if (stream->remote_ended || stream->io.is_broken) {
        return;
    }
    stream->remote_ended = true;
    if (stream->io.sink != NULL) {
        stream->io.sink->ops->ended(stream->io.sink);
    }
}

/* RST_STREAM: NO_ERROR and CANCEL read as an end, STREAM_CLOSED as a broken pipe, others as errors
 * (spec dataplane, section 8.3). */
static void was_reset(struct h2 *h2, struct stream *stream, uint32_t code) {
    h2->ops->settle(h2, stream);
    stream->was_reset = true;
    if (code == NGHTTP2_NO_ERROR || code == NGHTTP2_CANCEL) {
        stream_break(stream, (struct io_error){.is_reset = true, .code = code}, true);
    } else if (code == NGHTTP2_STREAM_CLOSED) {
        stream_break(stream, (struct io_error){.number = 32 /* EPIPE */}, false);
    } else {
        stream_break(stream, (struct io_error){.is_reset = true, .code = code}, false);
    }
}

/* Opening and breaking streams in a loop is an attack (CVE-2023-44487), also when the other side
 * makes us break them (CVE-2025-8671). */
static int count_reset(struct h2 *h2) {
    h2->resets++;
    return !h2->is_client && h2->resets > RESETS_TOLERATED ? flooded(h2) : 0;
}

/* Frames that cost us work and bring nobody anything. */
static bool is_empty(const nghttp2_frame *frame) {
    switch (frame->hd.type) {
    case NGHTTP2_DATA:
        return frame->hd.length == 0 && (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) == 0;
    case NGHTTP2_PING:
    case NGHTTP2_SETTINGS:
    case NGHTTP2_PRIORITY:
        return true;
    default:
        return false;
    }
}

static int on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
    (void)session;
    struct h2 *const h2 = user;
    struct stream *const stream = stream_of(h2, frame->hd.stream_id);
    if (is_empty(frame) && ++h2->empty_frames > EMPTY_FRAMES_TOLERATED) {
        return flooded(h2);
    }
    switch (frame->hd.type) {
    case NGHTTP2_HEADERS:
        if (stream != NULL) {
            headers_complete(h2, stream, frame);
        }
        break;
    case NGHTTP2_RST_STREAM:
        if (stream != NULL) {
            was_reset(h2, stream, frame->rst_stream.error_code);
        }
        return count_reset(h2);
    case NGHTTP2_SETTINGS:
        if ((frame->hd.flags & NGHTTP2_FLAG_ACK) == 0) {
            h2->has_settings = true;
            h2->ops->windows_opened(h2);
        }
        break;
    case NGHTTP2_WINDOW_UPDATE:
        h2->ops->windows_opened(h2);
        break;
    case NGHTTP2_PING:
        if ((frame->hd.flags & NGHTTP2_FLAG_ACK) != 0) {
            const uint8_t *const data = frame->ping.opaque_data;
            if (memcmp(data, H2_PING, sizeof(H2_PING)) == 0) {
                h2->ops->ping_acked(h2, false);
            } else if (memcmp(data, H2_DRAIN_PING, sizeof(H2_DRAIN_PING)) == 0) {
                h2->ops->ping_acked(h2, true);
            }
        }
        break;
    case NGHTTP2_GOAWAY:
        h2->ops->went_away(h2);
        break;
    default:
        break;
    }
    if (stream != NULL && (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0 &&
        (frame->hd.type == NGHTTP2_DATA || frame->hd.type == NGHTTP2_HEADERS)) {
        ended(h2, stream);
    }
    return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *bytes,
                   size_t len, void *user) {
    struct h2 *const h2 = user;
    h2->received += len;
    (void)nghttp2_session_consume_connection(session, len); /* returned on receipt, always */
    struct stream *const stream = stream_of(h2, id);
    if (stream == NULL || stream->owner == NULL || stream->io.is_broken) {
        (void)nghttp2_session_consume_stream(session, id, len);
    } else {
        stream->remote_ends = (flags & NGHTTP2_FLAG_END_STREAM) != 0;
        h2->ops->data(h2, stream, bytes, len);
    }
    return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t code, void *user) {
    (void)session;
    struct h2 *const h2 = user;
    struct stream *const stream = stream_of(h2, id);
    if (stream == NULL) {
        return 0;
    }
    if (!stream->was_reset) {
        if (code == NGHTTP2_NO_ERROR && stream->local_ended && stream->remote_ended) {
            h2->resets = h2->resets > 0 ? h2->resets - 1 : 0;
        } else {
            was_reset(h2, stream,
                      code == NGHTTP2_NO_ERROR || code == NGHTTP2_REFUSED_STREAM
                          ? NGHTTP2_STREAM_CLOSED
                          : code);
        }
    }
    h2->ops->settle(h2, stream);
    h2_forget(h2, stream);
    h2->ops->closed(h2);
    return 0;
}

/* --- what the library sends --- */

static int before_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
    struct h2 *const h2 = user;
    if (frame->hd.type == NGHTTP2_RST_STREAM) {
        const uint32_t code = frame->rst_stream.error_code;
        if (code == NGHTTP2_FLOW_CONTROL_ERROR) {
            /* Who ignores a window is not to be trusted with the others. */
            (void)nghttp2_session_terminate_session(session, NGHTTP2_FLOW_CONTROL_ERROR);
        } else if (code != NGHTTP2_NO_ERROR && code != NGHTTP2_CANCEL) {
            return count_reset(h2);
        }
    }
    return 0;
}

static int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
    struct h2 *const h2 = user;
    if (frame->hd.type == NGHTTP2_GOAWAY) {
        h2->is_over = true;
    }
    struct stream *const stream = stream_of(h2, frame->hd.stream_id);
    const bool is_end = (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0;
    if (stream == NULL || !is_end) {
        return 0;
    }
    if (frame->hd.type == NGHTTP2_HEADERS && stream->is_refused && !stream->remote_ended) {
        /* The request need not be sent to its end: RFC 9113, section 8.1. */
        return nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, stream->id, NGHTTP2_NO_ERROR);
    }
    if (frame->hd.type == NGHTTP2_DATA && stream->is_released && !stream->remote_ended) {
        h2_reset(stream, NGHTTP2_CANCEL); /* nobody is there to take more, see h2_release */
    }
    return 0;
}

/* MAX_CONCURRENT_STREAMS as the other side sees it, see H2_STREAMS_UNLIMITED. */
static void rewrite_settings(struct h2 *h2, uint8_t *frame, size_t len) {
    for (size_t at = H2_FRAME_HEADER; at + SETTINGS_ENTRY <= len; at += SETTINGS_ENTRY) {
        if (frame[at] == 0 && frame[at + 1] == NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS) {
            const uint32_t value = h2->max_served;
            frame[at + 2] = (uint8_t)(value >> 24);
            frame[at + 3] = (uint8_t)(value >> 16);
            frame[at + 4] = (uint8_t)(value >> 8);
            frame[at + 5] = (uint8_t)value;
        }
    }
}

static ssize_t on_send(nghttp2_session *session, const uint8_t *bytes, size_t len, int flags,
                       void *user) {
    (void)session;
    (void)flags;
    struct h2 *const h2 = user;
    if (len == H2_FRAME_HEADER && bytes[3] == NGHTTP2_HEADERS) {
        /* Only an empty trailer has no header block: see h2_end. */
        uint8_t end[H2_FRAME_HEADER];
        memcpy(end, bytes, len);
        end[3] = NGHTTP2_DATA;
        end[4] = NGHTTP2_FLAG_END_STREAM;
        h2->ops->emit(h2, end, len);
        return (ssize_t)len;
    }
    if (h2->is_first_flight && !h2->is_client && len < 128 && len > H2_FRAME_HEADER &&
        bytes[3] == NGHTTP2_SETTINGS) {
        uint8_t copy[128];
        memcpy(copy, bytes, len);
        rewrite_settings(h2, copy, len);
        h2->is_first_flight = false;
        h2->ops->emit(h2, copy, len);
    } else {
        h2->ops->emit(h2, bytes, len);
    }
    return (ssize_t)len;
}

/* How long the next DATA frame may be. A frame and its header fill whole TLS records. */
static ssize_t on_frame_length(nghttp2_session *session, uint8_t type, int32_t id,
                               int32_t session_window, int32_t stream_window, uint32_t frame_size,
                               void *user) {
    (void)session;
    (void)type;
    (void)id;
    (void)user;
    int64_t len = session_window < stream_window ? session_window : stream_window;
    len = len < (int64_t)frame_size ? len : (int64_t)frame_size;
    len = len < (int64_t)IO_READ_MAX ? len : (int64_t)IO_READ_MAX;
    if (len > RECORD_SIZE - H2_FRAME_HEADER) {
        len = (len + H2_FRAME_HEADER) / RECORD_SIZE * RECORD_SIZE - H2_FRAME_HEADER;
    }
    return len > 0 ? (ssize_t)len : NGHTTP2_ERR_CALLBACK_FAILURE;
}

ssize_t h2_callbacks_read(nghttp2_session *session, int32_t id, uint8_t *buf, size_t length,
                          uint32_t *flags, nghttp2_data_source *source, void *user) {
    (void)session;
    (void)id;
    (void)buf;
    (void)user;
    struct stream *const stream = source->ptr;
    if (stream->out_len > 0) {
        *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
        if (stream->out_len > length) {
            return (ssize_t)length;
        }
        if (stream->is_last) {
            *flags |= NGHTTP2_DATA_FLAG_EOF;
            stream->end_queued = true;
            stream->local_ended = true;
        }
        return (ssize_t)stream->out_len;
    }
    if (stream->end_queued) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        stream->local_ended = true;
        return 0;
    }
    stream->is_deferred = true;
    return NGHTTP2_ERR_DEFERRED;
}

static int on_send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *header,
                        size_t length, nghttp2_data_source *source, void *user) {
    (void)session;
    (void)frame;
    struct h2 *const h2 = user;
    struct stream *const stream = source->ptr;
    h2->ops->emit_data(h2, header, (uint8_t *)(uintptr_t)stream->out, length);
    stream->out += length;
    stream->out_len -= length;
    h2->sent += length;
    return 0;
}

nghttp2_session_callbacks *h2_callbacks_create(void) {
    nghttp2_session_callbacks *callbacks = NULL;
    if (nghttp2_session_callbacks_new(&callbacks) != 0) {
        return NULL;
    }
    nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, on_begin_frame);
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame_recv);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
    nghttp2_session_callbacks_set_before_frame_send_callback(callbacks, before_frame_send);
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_send);
    nghttp2_session_callbacks_set_send_callback(callbacks, on_send);
    nghttp2_session_callbacks_set_send_data_callback(callbacks, on_send_data);
    nghttp2_session_callbacks_set_data_source_read_length_callback(callbacks, on_frame_length);
    return callbacks;
}
