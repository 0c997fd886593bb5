/* SPDX-License-Identifier: Apache-2.0 */
#include "convert.h"

/* --- arguments */

int convert_u64(PyObject *from, void *to) {
    unsigned long long number = PyLong_AsUnsignedLongLong(from);
    if (number == (unsigned long long)-1 && PyErr_Occurred() != NULL) {
        return 0;
    }
    *(uint64_t *)to = number;
    return 1;
}

int convert_u32(PyObject *from, void *to) {
    uint64_t number = 0;
    if (!convert_u64(from, &number)) {
        return 0;
    }
    if (number > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "a number does not fit into 32 bits");
        return 0;
    }
    *(uint32_t *)to = (uint32_t)number;
    return 1;
}

int convert_addr(PyObject *from, void *to) {
    if (!PyBytes_Check(from)) {
        PyErr_SetString(PyExc_TypeError, "an address must be bytes");
        return 0;
    }
    if (PyBytes_GET_SIZE(from) != ADDR_PACKED ||
        !addr_unpack((const uint8_t *)PyBytes_AS_STRING(from), to)) {
        PyErr_SetString(PyExc_ValueError, "malformed address");
        return 0;
    }
    return 1;
}

static bool listener_set(struct core_listen *listener, PyObject *pair) {
    uint32_t role = 0;
    if (!PyTuple_Check(pair)) {
        PyErr_SetString(PyExc_TypeError, "a listener must be a tuple");
        return false;
    }
    *listener = (struct core_listen){0};
    if (!PyArg_ParseTuple(pair, "O&O&", convert_u32, &role, convert_addr, &listener->at)) {
        return false;
    }
    if (role >= CORE_ROLES) {
        PyErr_SetString(PyExc_ValueError, "unknown role");
        return false;
    }
    listener->role = (enum core_role)role;
    listener->is_v6 = listener->at.family == 6;
    return true;
}

int convert_listeners(PyObject *from, void *to) {
    struct convert_listeners *listeners = to;
    PyObject *pairs = PySequence_Fast(from, "listeners must be a sequence");
    if (pairs == NULL) {
        return 0;
    }
    listeners->n = (size_t)PySequence_Fast_GET_SIZE(pairs);
    bool is_set = listeners->n <= CONVERT_LISTENERS_MAX;
    if (!is_set) {
        PyErr_SetString(PyExc_ValueError, "too many listeners");
    }
    for (size_t i = 0; is_set && i < listeners->n; i++) {
        PyObject *pair = PySequence_Fast_GET_ITEM(pairs, (Py_ssize_t)i);
        is_set = listener_set(&listeners->items[i], pair);
    }
    Py_DECREF(pairs);
    return is_set;
}

int convert_numbers(PyObject *from, void *to) {
    struct convert_numbers *numbers = to;
    if (from == NULL) { /* a later argument was wrong */
        PyMem_Free(numbers->items);
        return 1;
    }
    PyObject *ints = PySequence_Fast(from, "a sequence of ints is expected");
    if (ints == NULL) {
        return 0;
    }
    size_t n = (size_t)PySequence_Fast_GET_SIZE(ints);
    uint64_t *items = PyMem_New(uint64_t, n);
    bool is_read = items != NULL;
    if (!is_read) {
        PyErr_NoMemory();
    }
    for (size_t i = 0; is_read && i < n; i++) {
        is_read = convert_u64(PySequence_Fast_GET_ITEM(ints, (Py_ssize_t)i), &items[i]) != 0;
    }
    Py_DECREF(ints);
    if (!is_read) {
        PyMem_Free(items);
        return 0;
    }
    *numbers = (struct convert_numbers){items, n};
    return Py_CLEANUP_SUPPORTED;
}

int convert_texts(PyObject *from, void *to) {
    struct convert_texts *texts = to;
    if (!PyTuple_Check(from)) {
        PyErr_SetString(PyExc_TypeError, "a tuple of bytes is expected");
        return 0;
    }
    size_t n = (size_t)PyTuple_GET_SIZE(from);
    *texts = (struct convert_texts){PyMem_New(struct text, n), n};
    if (texts->items == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        char *bytes = NULL;
        Py_ssize_t len = 0;
        if (PyBytes_AsStringAndSize(PyTuple_GET_ITEM(from, (Py_ssize_t)i), &bytes, &len) != 0) {
            PyMem_Free(texts->items);
            return 0;
        }
        texts->items[i] = (struct text){bytes, (size_t)len};
    }
    return 1;
}

/* One member of struct core_config. */
struct field {
    const char *name;
    size_t offset;
    enum { FIELD_BOOL, FIELD_SIGN, FIELD_U32, FIELD_U64 } type;
};

/* clang-format off */
#define FIELD(member)                                                              \
    {#member, offsetof(struct core_config, member),                                \
     _Generic(((struct core_config *)0)->member,                                   \
              bool: FIELD_BOOL, int8_t: FIELD_SIGN, uint32_t: FIELD_U32, uint64_t: FIELD_U64)}
/* clang-format on */

static const struct field FIELDS[] = {
    FIELD(n_workers),
    FIELD(stream_window),
    FIELD(connection_window),
    FIELD(frame_size),
    FIELD(max_streams_served),
    FIELD(pool_max_streams),
    FIELD(pool_idle_ns),
    FIELD(ping_interval_ns),
    FIELD(ping_timeout_ns),
    FIELD(connect_timeout_ns),
    FIELD(handshake_timeout_ns),
    FIELD(decision_timeout_ns),
    FIELD(acknowledge_timeout_ns),
    FIELD(handshakes_at_once),
    FIELD(buffer_budget),
    FIELD(flows_per_workload),
    FIELD(questions_per_workload),
    FIELD(flow_idle_ns),
    FIELD(tls12),
    FIELD(post_quantum),
    FIELD(orig_src),
    FIELD(keepalive),
    FIELD(keepalive_time_s),
    FIELD(keepalive_interval_s),
    FIELD(keepalive_retries),
    FIELD(user_timeout),
    FIELD(has_mark),
    FIELD(mark),
    FIELD(port_reuse),
    FIELD(report_opened),
    FIELD(has_manual_time),
};

static bool field_set(const struct field *field, PyObject *value, struct core_config *config) {
    void *member = (char *)config + field->offset;
    switch (field->type) {
    case FIELD_BOOL: {
        int is_true = PyObject_IsTrue(value);
        if (is_true < 0) {
            return false;
        }
        *(bool *)member = is_true != 0;
        return true;
    }
    case FIELD_SIGN: {
        long number = PyLong_AsLong(value);
        if (number == -1 && PyErr_Occurred() != NULL) {
            return false;
        }
        *(int8_t *)member = (int8_t)((number > 0) - (number < 0));
        return true;
    }
    case FIELD_U32:
        return convert_u32(value, member);
    case FIELD_U64:
        return convert_u64(value, member);
    }
    return false;
}

int convert_config(PyObject *from, void *to) {
    if (!PyDict_Check(from) || PyDict_GET_SIZE(from) != (Py_ssize_t)ARRAY_LEN(FIELDS)) {
        PyErr_Format(PyExc_TypeError, "config must be a dict with %zu fields", ARRAY_LEN(FIELDS));
        return 0;
    }
    struct core_config *config = to;
    *config = (struct core_config){0};
    for (size_t i = 0; i < ARRAY_LEN(FIELDS); i++) {
        PyObject *value = PyDict_GetItemString(from, FIELDS[i].name);
        if (value == NULL) {
            PyErr_Format(PyExc_TypeError, "config has no %s", FIELDS[i].name);
            return 0;
        }
        if (!field_set(&FIELDS[i], value, config)) {
            return 0;
        }
    }
    return 1;
}

/* --- results */

/* A tuple that is being filled; one item that cannot be made spoils it. */
struct row {
    PyObject *tuple; /* NULL: there was no memory for it */
    Py_ssize_t n;    /* items so far */
    bool is_spoilt;
};

static struct row row_of(Py_ssize_t size) {
    return (struct row){.tuple = PyTuple_New(size)};
}

/* Takes the reference to `item`, which may be NULL with an exception set. */
static void row_put(struct row *row, PyObject *item) {
    if (row->tuple == NULL || item == NULL) {
        row->is_spoilt = true;
        Py_XDECREF(item);
        return;
    }
    PyTuple_SET_ITEM(row->tuple, row->n, item);
    row->n++;
}

static void row_put_u64(struct row *row, uint64_t number) {
    row_put(row, PyLong_FromUnsignedLongLong(number));
}

static void row_put_bool(struct row *row, bool is_true) {
    row_put(row, PyBool_FromLong(is_true));
}

static void row_put_addr(struct row *row, const struct addr *addr) {
    row_put(row, convert_from_addr(addr));
}

/* Bytes as they came from a header: every byte is a character. NULL is the empty text. */
static void row_put_latin1(struct row *row, const char *text) {
    if (text == NULL) {
        text = "";
    }
    row_put(row, PyUnicode_DecodeLatin1(text, (Py_ssize_t)strlen(text), NULL));
}

/* What was written for people: UTF-8, as far as it is. NULL is the empty text. */
static void row_put_text(struct row *row, const char *text) {
    if (text == NULL) {
        text = "";
    }
    row_put(row, PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace"));
}

static void row_put_bytes(struct row *row, const uint8_t *bytes, size_t len) {
    row_put(row, PyBytes_FromStringAndSize((const char *)bytes, (Py_ssize_t)len));
}

/* The digits of a trace id. */
static void row_put_trace(struct row *row, const struct trace *trace) {
    char digits[TRACE_DIGITS];
    trace_hex(trace->high, digits);
    trace_hex(trace->low, &digits[SPAN_DIGITS]);
    row_put(row, PyUnicode_DecodeLatin1(digits, TRACE_DIGITS, NULL));
}

/* The digits of its span, none if there is none. */
static void row_put_span(struct row *row, const struct trace *trace) {
    char digits[SPAN_DIGITS];
    trace_hex(trace->span, digits);
    row_put(row, PyUnicode_DecodeLatin1(digits, trace->span != 0 ? SPAN_DIGITS : 0, NULL));
}

static PyObject *row_end(struct row *row) {
    if (row->is_spoilt) {
        Py_CLEAR(row->tuple);
    }
    return row->tuple;
}

PyObject *convert_from_addr(const struct addr *addr) {
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, ADDR_PACKED);
    if (bytes != NULL) {
        (void)addr_pack(addr, (uint8_t *)PyBytes_AS_STRING(bytes));
    }
    return bytes;
}

PyObject *convert_from_numbers(const uint64_t *numbers, size_t n) {
    struct row row = row_of((Py_ssize_t)n);
    for (size_t i = 0; i < n; i++) {
        row_put_u64(&row, numbers[i]);
    }
    return row_end(&row);
}

PyObject *convert_from_names(const char *(*name)(size_t i), size_t n) {
    struct row row = row_of((Py_ssize_t)n);
    for (size_t i = 0; i < n; i++) {
        row_put(&row, PyUnicode_FromString(name(i)));
    }
    return row_end(&row);
}

PyObject *convert_from_listener(const struct core_listen *listener) {
    struct row row = row_of(2);
    row_put_addr(&row, &listener->bound);
    row_put_bool(&row, listener->is_transparent);
    return row_end(&row);
}

PyObject *convert_from_question(const struct upcall *question) {
    struct row row = row_of(4);
    row_put_u64(&row, question->id);
    row_put_u64(&row, question->kind);
    row_put_u64(&row, question->workload);
    row_put_bytes(&row, question->key, question->key_len);
    return row_end(&row);
}

PyObject *convert_from_live(const struct core_live *live) {
    struct row row = row_of(3);
    row_put_u64(&row, live->conn);
    row_put_u64(&row, live->kind);
    row_put_bytes(&row, live->key, live->key_len);
    return row_end(&row);
}

PyObject *convert_from_record(const struct record *record) {
    const struct verdict *verdict = record->verdict;
    PyObject *tag = verdict != NULL ? (PyObject *)(uintptr_t)verdict->tag : NULL;
    struct row row = row_of(20);
    row_put_u64(&row, record->kind);
    row_put_u64(&row, record->conn);
    row_put_u64(&row, record->workload);
    row_put_bool(&row, record->is_inbound);
    row_put_u64(&row, record->reason);
    row_put(&row, PyLong_FromLong(record->has_hop ? (long)record->hop : -1));
    row_put(&row, PyLong_FromLong(record->tunnel_reused));
    row_put_addr(&row, &record->src);
    row_put_addr(&row, &record->dst);
    row_put_addr(&row, &record->original_dst);
    row_put_addr(&row, &record->app);
    row_put_u64(&row, record->upstream_bytes);
    row_put_u64(&row, record->downstream_bytes);
    row_put(&row, convert_from_numbers(record->steps_ns, STEPS));
    row_put(&row, Py_NewRef(tag != NULL ? tag : Py_None));
    row_put_text(&row, record->detail);
    row_put_latin1(&row, record->authority);
    row_put_u64(&row, record->protocol);
    row_put_trace(&row, &record->trace);
    row_put_span(&row, &record->trace);
    return row_end(&row);
}

PyObject *convert_from_conn_view(const struct core_conn_view *view) {
    struct row row = row_of(20);
    row_put_u64(&row, view->id);
    row_put_u64(&row, view->workload);
    row_put_bool(&row, view->is_inbound);
    row_put_bool(&row, view->has_hop);
    row_put_u64(&row, view->protocol);
    row_put_addr(&row, &view->src);
    row_put_addr(&row, &view->original_dst);
    row_put_addr(&row, &view->dst);
    row_put_addr(&row, &view->app);
    row_put_latin1(&row, view->authority);
    row_put_u64(&row, view->age_ns);
    row_put_u64(&row, view->upstream_bytes);
    row_put_u64(&row, view->downstream_bytes);
    row_put_u64(&row, view->tunnel);
    row_put_u64(&row, view->client_stalled_ns);
    row_put_u64(&row, view->upstream_stalled_ns);
    row_put_u64(&row, view->client_waiting);
    row_put_u64(&row, view->upstream_waiting);
    row_put_latin1(&row, view->state);
    row_put_trace(&row, &view->trace);
    return row_end(&row);
}

PyObject *convert_from_tunnel_view(const struct core_tunnel_view *view) {
    struct row row = row_of(15);
    row_put_u64(&row, view->id);
    row_put_u64(&row, view->workload);
    row_put_bool(&row, view->is_inbound);
    row_put_bool(&row, view->is_draining);
    row_put_addr(&row, &view->remote);
    row_put_latin1(&row, view->identity);
    row_put_u64(&row, view->streams);
    row_put_u64(&row, view->age_ns);
    row_put_u64(&row, view->worker);
    row_put_u64(&row, view->received_bytes);
    row_put_u64(&row, view->sent_bytes);
    row_put_u64(&row, view->stalled_ns);
    row_put_u64(&row, view->unsent_bytes);
    row_put(&row, PyLong_FromLong(view->send_window));
    row_put(&row, PyLong_FromLong(view->receive_window));
    return row_end(&row);
}

void convert_list_add(PyObject **list, PyObject *row) {
    if (*list != NULL && (row == NULL || PyList_Append(*list, row) != 0)) {
        Py_CLEAR(*list);
    }
    Py_XDECREF(row);
}
