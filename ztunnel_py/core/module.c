/* SPDX-License-Identifier: Apache-2.0 */
/* The binding's one type, `Core`, whose methods are the calls of core.h.
 *
 * Bytes and ints cross, and one kind of object: the Python verdict that belongs to an answer. The
 * core knows it by its address (`tag`) and holds one reference to it from `reply` until it comes
 * back through `core_recv_released`. Calls that wait for workers, and parsing certificates, let
 * other Python threads run meanwhile; workers never touch Python.
 */
#include "module.h"

#include <errno.h>

#include "convert.h"

#define BATCH 64
#define ERROR_SIZE 256

struct binding {
    PyObject_HEAD struct core *core;
    bool is_running; /* false after `stop` */
};

static struct core *core_of(PyObject *self) {
    return ((struct binding *)self)->core;
}

/* The core if it runs, else NULL with an exception set. */
static struct core *running(PyObject *self) {
    if (!((struct binding *)self)->is_running) {
        PyErr_SetString(PyExc_RuntimeError, "the core has stopped");
        return NULL;
    }
    return core_of(self);
}

/* Drops the references to verdicts that the core does not need any more. */
static void drop_released(struct core *core) {
    uint64_t tags[BATCH];
    size_t n = 0;
    while ((n = core_recv_released(core, tags, BATCH)) != 0) {
        for (size_t i = 0; i < n; i++) {
            Py_DECREF((PyObject *)(uintptr_t)tags[i]);
        }
    }
}

/* A call whose only argument is a workload, and that may have to wait for workers. */
static PyObject *call_for_workload(PyObject *self, PyObject *arg,
                                   void (*call)(struct core *core, uint32_t workload)) {
    struct core *core = running(self);
    uint32_t workload = 0;
    if (core == NULL || !convert_u32(arg, &workload)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        call(core, workload);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* --- life */

static PyObject *core_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    struct core_config config;
    if (!PyArg_ParseTuple(args, "O&:Core", convert_config, &config)) {
        return NULL;
    }
    const char *problem = core_problem(&config);
    if (problem != NULL) {
        PyErr_SetString(PyExc_ValueError, problem);
        return NULL;
    }
    PyObject *self = type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    struct binding *binding = (struct binding *)self;
    Py_BEGIN_ALLOW_THREADS
        errno = 0;
        binding->core = core_start(&config);
    Py_END_ALLOW_THREADS
    if (binding->core == NULL) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(self);
        return NULL;
    }
    binding->is_running = true;
    return self;
}

static void stop_once(struct binding *binding) {
    if (binding->is_running) {
        binding->is_running = false;
        Py_BEGIN_ALLOW_THREADS
            core_stop(binding->core);
        Py_END_ALLOW_THREADS
        drop_released(binding->core);
    }
}

static void core_dealloc(PyObject *self) {
    struct binding *binding = (struct binding *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (binding->core != NULL) {
        stop_once(binding);
        struct record record;
        while (core_recv_records(binding->core, &record, 1) == 1) {
            core_record_release(binding->core, &record);
        }
        drop_released(binding->core);
        core_free(binding->core);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *py_stop(PyObject *self, PyObject *Py_UNUSED(unused)) {
    stop_once((struct binding *)self);
    Py_RETURN_NONE;
}

/* Does `what` with a running core. */
static PyObject *call_core(PyObject *self, void (*what)(struct core *core)) {
    struct core *core = running(self);
    if (core == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        what(core);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_step_aside(PyObject *self, PyObject *Py_UNUSED(unused)) {
    return call_core(self, core_step_aside);
}

static PyObject *py_drain(PyObject *self, PyObject *args) {
    struct core *core = running(self);
    uint32_t workload = 0;
    int is_immediate = 0;
    if (core == NULL ||
        !PyArg_ParseTuple(args, "O&p:drain", convert_u32, &workload, &is_immediate)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        core_drain(core, workload, is_immediate != 0);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_is_idle(PyObject *self, PyObject *arg) {
    struct core *core = running(self);
    uint32_t workload = 0;
    if (core == NULL || !convert_u32(arg, &workload)) {
        return NULL;
    }
    return PyBool_FromLong(core_is_idle(core, workload));
}

/* --- workloads */

static PyObject *py_workload_add(PyObject *self, PyObject *args) {
    struct core *core = running(self);
    uint32_t workload = 0;
    int netns = -1;
    struct convert_listeners listeners;
    if (core == NULL || !PyArg_ParseTuple(args, "O&iO&:workload_add", convert_u32, &workload,
                                          &netns, convert_listeners, &listeners)) {
        return NULL;
    }
    size_t failed = 0;
    int error = core_workload_add(core, workload, netns, listeners.items, listeners.n, &failed);
    if (error != 0) {
        errno = error;
        PyObject *index = PyLong_FromSize_t(failed);
        if (index != NULL) {
            PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, index);
            Py_DECREF(index);
        }
        return NULL;
    }
    PyObject *list = PyList_New(0);
    for (size_t i = 0; i < listeners.n; i++) {
        convert_list_add(&list, convert_from_listener(&listeners.items[i]));
    }
    return list;
}

static PyObject *py_workload_serve(PyObject *self, PyObject *arg) {
    return call_for_workload(self, arg, core_workload_serve);
}

static PyObject *py_workload_remove(PyObject *self, PyObject *arg) {
    return call_for_workload(self, arg, core_workload_remove);
}

static PyObject *py_adopt(PyObject *self, PyObject *args) {
    struct core *core = running(self);
    uint32_t workload = 0;
    int fd = -1;
    struct addr src, dst;
    if (core == NULL || !PyArg_ParseTuple(args, "O&iO&O&:adopt", convert_u32, &workload, &fd,
                                          convert_addr, &src, convert_addr, &dst)) {
        return NULL;
    }
    core_adopt(core, workload, fd, &src, &dst);
    Py_RETURN_NONE;
}

/* --- identity */

static PyObject *py_identity_set(PyObject *self, PyObject *args) {
    struct core *core = running(self);
    uint32_t workload = 0;
    Py_buffer texts[3] = {{0}};
    if (core == NULL || !PyArg_ParseTuple(args, "O&y*y*y*:identity_set", convert_u32, &workload,
                                          &texts[0], &texts[1], &texts[2])) {
        return NULL;
    }
    struct text given[ARRAY_LEN(texts)];
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        given[i] = (struct text){texts[i].buf, (size_t)texts[i].len};
    }
    char error[ERROR_SIZE] = "";
    bool is_set = false;
    Py_BEGIN_ALLOW_THREADS
        is_set =
            core_identity_set(core, workload, given[0], given[1], given[2], error, sizeof(error));
    Py_END_ALLOW_THREADS
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        PyBuffer_Release(&texts[i]);
    }
    if (!is_set) {
        PyErr_SetString(PyExc_ValueError, error);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *py_identity_drop(PyObject *self, PyObject *arg) {
    return call_for_workload(self, arg, core_identity_drop);
}

static PyObject *py_revocations_load(PyObject *self, PyObject *arg) {
    struct convert_texts lists;
    if (!convert_texts(arg, &lists)) {
        return NULL;
    }
    char error[ERROR_SIZE] = "";
    bool is_loaded = false;
    Py_BEGIN_ALLOW_THREADS
        is_loaded =
            core_revocations_load(core_of(self), lists.items, lists.n, error, sizeof(error));
    Py_END_ALLOW_THREADS
    PyMem_Free(lists.items);
    if (!is_loaded) {
        PyErr_SetString(PyExc_ValueError, error);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *py_revocations_apply(PyObject *self, PyObject *Py_UNUSED(unused)) {
    struct core *core = running(self);
    if (core == NULL) {
        return NULL;
    }
    size_t n = 0;
    Py_BEGIN_ALLOW_THREADS
        n = core_revocations_apply(core);
    Py_END_ALLOW_THREADS
    return PyLong_FromSize_t(n);
}

/* --- questions */

static PyObject *py_recv_questions(PyObject *self, PyObject *arg) {
    struct core *core = running(self);
    uint32_t limit = 0;
    if (core == NULL || !convert_u32(arg, &limit)) {
        return NULL;
    }
    drop_released(core);
    struct upcall questions[BATCH];
    size_t n = BATCH;
    PyObject *list = PyList_New(0);
    for (size_t left = limit; list != NULL && left > 0 && n == BATCH; left -= n) {
        n = core_recv_questions(core, questions, left < BATCH ? left : BATCH);
        for (size_t i = 0; i < n; i++) {
            if (list != NULL) {
                convert_list_add(&list, convert_from_question(&questions[i]));
            }
            core_question_free(core, &questions[i]);
        }
    }
    return list;
}

static PyObject *py_reply(PyObject *self, PyObject *args) {
    struct core *core = running(self);
    uint64_t question = 0;
    PyObject *verdict = NULL;
    PyObject *tag = NULL;
    if (core == NULL ||
        !PyArg_ParseTuple(args, "O&SO:reply", convert_u64, &question, &verdict, &tag)) {
        return NULL;
    }
    Py_INCREF(tag); /* before it can be released */
    bool is_taken = core_reply(core, question, (const uint8_t *)PyBytes_AS_STRING(verdict),
                               (size_t)PyBytes_GET_SIZE(verdict), (uint64_t)(uintptr_t)tag);
    if (!is_taken) {
        Py_DECREF(tag);
    }
    return PyBool_FromLong(is_taken);
}

/* --- epochs and live flows */

static PyObject *py_epoch(PyObject *self, PyObject *Py_UNUSED(unused)) {
    struct core *core = running(self);
    if (core == NULL) {
        return NULL;
    }
    struct epoch epoch = core_epoch(core);
    return Py_BuildValue("KK", epoch.discovery, epoch.policy);
}

static PyObject *py_epoch_bump(PyObject *self, PyObject *args) {
    struct core *core = running(self);
    int discovery = 0;
    int policy = 0;
    if (core == NULL || !PyArg_ParseTuple(args, "pp:epoch_bump", &discovery, &policy)) {
        return NULL;
    }
    core_epoch_bump(core, discovery != 0, policy != 0);
    Py_RETURN_NONE;
}

static PyObject *py_live_keys(PyObject *self, PyObject *arg) {
    struct core *core = running(self);
    uint32_t workload = 0;
    if (core == NULL || !convert_u32(arg, &workload)) {
        return NULL;
    }
    struct core_live *live = NULL;
    size_t n = 0;
    Py_BEGIN_ALLOW_THREADS
        n = core_live_keys(core, workload, &live);
    Py_END_ALLOW_THREADS
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < n; i++) {
        convert_list_add(&list, convert_from_live(&live[i]));
    }
    core_live_free(core, live, n);
    return list;
}

static PyObject *py_conn_kill(PyObject *self, PyObject *args) {
    struct core *core = running(self);
    uint32_t number = 0;
    enum reason reason = REASON_OK;
    struct convert_numbers conns = {0};
    if (core == NULL ||
        !PyArg_ParseTuple(args, "O&O&:conn_kill", convert_numbers, &conns, convert_u32, &number)) {
        return NULL;
    }
    bool is_known = reason_of(number, &reason);
    if (is_known) {
        Py_BEGIN_ALLOW_THREADS
            core_conn_kill(core, conns.items, conns.n, reason);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "unknown reason");
    }
    PyMem_Free(conns.items);
    return is_known ? Py_NewRef(Py_None) : NULL;
}

/* --- looking */

static PyObject *py_connections(PyObject *self, PyObject *Py_UNUSED(unused)) {
    struct core *core = running(self);
    if (core == NULL) {
        return NULL;
    }
    struct core_conn_view *views = NULL;
    size_t n = 0;
    Py_BEGIN_ALLOW_THREADS
        n = core_connections(core, &views);
    Py_END_ALLOW_THREADS
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < n; i++) {
        convert_list_add(&list, convert_from_conn_view(&views[i]));
    }
    core_connections_free(core, views, n);
    return list;
}

static PyObject *py_tunnels(PyObject *self, PyObject *Py_UNUSED(unused)) {
    struct core *core = running(self);
    if (core == NULL) {
        return NULL;
    }
    struct core_tunnel_view *views = NULL;
    size_t n = 0;
    Py_BEGIN_ALLOW_THREADS
        n = core_tunnels(core, &views);
    Py_END_ALLOW_THREADS
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < n; i++) {
        convert_list_add(&list, convert_from_tunnel_view(&views[i]));
    }
    core_tunnels_free(core, views, n);
    return list;
}

static PyObject *py_counts(PyObject *self, PyObject *Py_UNUSED(unused)) {
    uint64_t counts[MEM_KINDS] = {0};
    drop_released(core_of(self));
    core_counts(core_of(self), counts);
    return convert_from_numbers(counts, MEM_KINDS);
}

static PyObject *py_buffered(PyObject *self, PyObject *Py_UNUSED(unused)) {
    return PyLong_FromUnsignedLongLong(core_buffered(core_of(self)));
}

/* --- numbers and records */

static PyObject *py_slots(PyObject *self, PyObject *arg) {
    uint32_t n = 0;
    if (!convert_u32(arg, &n)) {
        return NULL;
    }
    if (n > STATS_SLOTS_MAX) {
        PyErr_SetString(PyExc_ValueError, "more slots than there are");
        return NULL;
    }
    PyObject *bytes =
        PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(n * STATS_COLUMNS * sizeof(uint64_t)));
    if (bytes != NULL) {
        memset(PyBytes_AS_STRING(bytes), 0, (size_t)PyBytes_GET_SIZE(bytes));
        core_slots(core_of(self), (uint64_t *)(void *)PyBytes_AS_STRING(bytes), n);
    }
    return bytes;
}

static PyObject *py_events(PyObject *self, PyObject *Py_UNUSED(unused)) {
    uint64_t sums[STATS_EVENTS] = {0};
    core_events(core_of(self), sums);
    return convert_from_numbers(sums, STATS_EVENTS);
}

static PyObject *py_recv_records(PyObject *self, PyObject *arg) {
    uint32_t limit = 0;
    if (!convert_u32(arg, &limit)) {
        return NULL;
    }
    struct core *core = core_of(self);
    struct record records[BATCH];
    size_t n = BATCH;
    PyObject *list = PyList_New(0);
    for (size_t left = limit; list != NULL && left > 0 && n == BATCH; left -= n) {
        n = core_recv_records(core, records, left < BATCH ? left : BATCH);
        for (size_t i = 0; i < n; i++) {
            if (list != NULL) {
                convert_list_add(&list, convert_from_record(&records[i]));
            }
            core_record_release(core, &records[i]);
        }
    }
    drop_released(core);
    return list;
}

static PyObject *py_report_opened(PyObject *self, PyObject *arg) {
    struct core *core = running(self);
    int is_wanted = core == NULL ? -1 : PyObject_IsTrue(arg);
    if (is_wanted < 0) {
        return NULL;
    }
    core_report_opened(core, is_wanted != 0);
    Py_RETURN_NONE;
}

/* --- tests */

static PyObject *py_advance(PyObject *self, PyObject *arg) {
    struct core *core = running(self);
    uint64_t ns = 0;
    if (core == NULL || !convert_u64(arg, &ns)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        core_advance(core, ns);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_fence(PyObject *self, PyObject *Py_UNUSED(unused)) {
    return call_core(self, core_fence);
}

/* --- the type and the module */

static PyObject *get_fd(PyObject *self, void *closure) {
    int (*fd_of)(const struct core *core) = *(int (**)(const struct core *))closure;
    return PyLong_FromLong(fd_of(core_of(self)));
}

/* A getter's closure is a pointer to data, hence these. */
static int (*idle_fd)(const struct core *core) = core_idle_fd;
static int (*question_fd)(const struct core *core) = core_question_fd;
static int (*record_fd)(const struct core *core) = core_record_fd;

static PyGetSetDef FDS[] = {
    {"idle_fd", get_fd, NULL, "Readable after a workload became idle.", &idle_fd},
    {"question_fd", get_fd, NULL, "Readable while questions wait.", &question_fd},
    {"record_fd", get_fd, NULL, "Readable while records wait.", &record_fd},
    {0},
};

#define METHOD(name, flags, signature, doc) \
    { #name, py_##name, flags, #name signature "\n--\n\n" doc }

static PyMethodDef METHODS[] = {
    METHOD(stop, METH_NOARGS, "($self, /)",
           "Ends what lives, then the workers; records and counters can still be read."),
    METHOD(step_aside, METH_NOARGS, "($self, /)",
           "Leaves new connections to another proxy at the same addresses."),
    METHOD(drain, METH_VARARGS, "($self, workload, is_immediate, /)",
           "Ends one workload's connections, or all (ALL)."),
    METHOD(is_idle, METH_O, "($self, workload, /)",
           "Whether nothing lives on behalf of the workload, or of any (ALL)."),
    METHOD(workload_add, METH_VARARGS, "($self, workload, netns, listeners, /)",
           "Binds (role, address) each in a network namespace (-1: ours); returns (bound address, "
           "is transparent) each.\n\n"
           "Raises OSError with the index of the listener as its filename."),
    METHOD(workload_serve, METH_O, "($self, workload, /)", "Begins to accept."),
    METHOD(workload_remove, METH_O, "($self, workload, /)",
           "Ends what lives on its behalf at once and forgets it."),
    METHOD(adopt, METH_VARARGS, "($self, workload, fd, src, dst, /)",
           "Serves a connected socket as an outbound one; takes the descriptor."),
    METHOD(identity_set, METH_VARARGS, "($self, workload, chain, key, roots, /)",
           "New handshakes use this certificate (PEM).\n\n"
           "Raises ValueError if it cannot be used."),
    METHOD(identity_drop, METH_O, "($self, workload, /)",
           "Forgets the certificate; the next handshake asks for it."),
    METHOD(revocations_load, METH_O, "($self, lists, /)",
           "Reads a tuple of revocation lists (DER) for `revocations_apply`; in any thread.\n\n"
           "Raises ValueError if one cannot be read."),
    METHOD(revocations_apply, METH_NOARGS, "($self, /)",
           "Uses them, and ends tunnels that they revoke; returns how many."),
    METHOD(recv_questions, METH_O, "($self, limit, /)",
           "At most `limit` of (id, kind, workload, key)."),
    METHOD(reply, METH_VARARGS, "($self, question, verdict, tag, /)",
           "Answers a question with packed bytes; records carry `tag`.\n\n"
           "False if the bytes are malformed, which denies."),
    METHOD(epoch, METH_NOARGS, "($self, /)", "The current (discovery, policy) versions."),
    METHOD(epoch_bump, METH_VARARGS, "($self, discovery, policy, /)",
           "Makes verdicts of older versions misses."),
    METHOD(live_keys, METH_O, "($self, workload, /)",
           "(connection, kind, key) of every live inbound connection."),
    METHOD(conn_kill, METH_VARARGS, "($self, conns, reason, /)",
           "Ends connections; unknown ids are ignored."),
    METHOD(connections, METH_NOARGS, "($self, /)", "What lives."),
    METHOD(tunnels, METH_NOARGS, "($self, /)", "HBONE connections of both directions."),
    METHOD(counts, METH_NOARGS, "($self, /)", "Live objects by kind, in the order of KINDS."),
    METHOD(buffered, METH_NOARGS, "($self, /)", "Bytes held in buffers."),
    METHOD(slots, METH_O, "($self, n, /)",
           "COLUMNS native 64-bit numbers for each of the first `n` slots."),
    METHOD(events, METH_NOARGS, "($self, /)", "Event counters, in the order of EVENTS."),
    METHOD(recv_records, METH_O, "($self, limit, /)",
           "At most `limit` records, oldest of each worker first."),
    METHOD(report_opened, METH_O, "($self, is_wanted, /)",
           "Whether records of kind OPENED are wanted, from now on."),
    METHOD(advance, METH_O, "($self, ns, /)", "Moves the manual clock, running timers in order."),
    METHOD(fence, METH_NOARGS, "($self, /)",
           "Returns once every worker has handled the events it knew of."),
    {0},
};

static PyType_Slot CORE_SLOTS[] = {
    {Py_tp_doc, "Core(config, /)\n--\n\nA running core; config: struct core_config, as ints."},
    {Py_tp_new, core_new},
    {Py_tp_dealloc, core_dealloc},
    {Py_tp_methods, METHODS},
    {Py_tp_getset, FDS},
    {0},
};

PyType_Spec module_core_spec = {
    .name = "ztunnel_py.core._core.Core",
    .basicsize = sizeof(struct binding),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = CORE_SLOTS,
};
