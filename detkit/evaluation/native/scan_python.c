/* The scans of scan.c for Python, with columns that numpy takes as they are, without a copy. */
#define PY_SSIZE_T_CLEAN
#include "scan_python.h"

#include <errno.h>
#include <unistd.h>

#include "scan.h"

/* A column that frees itself; numpy sees it through the buffer protocol. */
typedef struct {
    PyObject_HEAD
    char *data;
    ScanKind kind;
    Py_ssize_t shape[2], strides[2]; /* [rows] or, of boxes, [rows, 4] */
} Column;

static int column_buffer(PyObject *object, Py_buffer *view, int flags)
{
    static char *const formats[] = {
        [SCAN_INTEGER] = sizeof(long) == 8 ? "l" : "q",
        [SCAN_NUMBER] = "d",
        [SCAN_BOX] = "d",
        [SCAN_FLAG] = "?",
    };
    Column *column = (Column *)object;
    Py_ssize_t bytes = column->shape[0] * (Py_ssize_t)scan_cell(column->kind);
    if (PyBuffer_FillInfo(view, object, column->data, bytes, 0, flags) < 0)
        return -1;
    view->ndim = column->kind == SCAN_BOX ? 2 : 1;
    view->itemsize = column->kind == SCAN_FLAG ? 1 : 8;
    view->format = flags & PyBUF_FORMAT ? formats[column->kind] : NULL;
    view->shape = flags & PyBUF_ND ? column->shape : NULL;
    view->strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? column->strides : NULL;
    return 0;
}

static void column_free(PyObject *object)
{
    free(((Column *)object)->data);
    Py_TYPE(object)->tp_free(object);
}

static PyBufferProcs column_protocol = {.bf_getbuffer = column_buffer};
static PyTypeObject column_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "detkit.evaluation._native.Column",
    .tp_basicsize = sizeof(Column),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = column_free,
    .tp_as_buffer = &column_protocol,
};

/* Moves a column out of the table. */
static PyObject *take_column(ScanTable *table, int field)
{
    Column *column = PyObject_New(Column, &column_type);
    if (!column)
        return NULL;
    ScanKind kind = table->fields[field].kind;
    column->data = table->columns[field];
    table->columns[field] = NULL;
    column->kind = kind;
    column->shape[0] = (Py_ssize_t)table->count;
    column->shape[1] = 4;
    column->strides[0] = (Py_ssize_t)scan_cell(kind);
    column->strides[1] = sizeof(double);
    return (PyObject *)column;
}

/* (first byte, byte behind the last, bits of missing fields, column, column, ..) */
static PyObject *take_table(ScanTable *table)
{
    int fields = 0;
    while (table->fields && table->fields[fields].key)
        fields++;
    PyObject *result = PyTuple_New(3 + fields);
    const long long numbers[] = {table->start, table->end, table->missing};
    for (int i = 0; result && i < 3 + fields; i++) {
        PyObject *item = i < 3 ? PyLong_FromLongLong(numbers[i]) : take_column(table, i - 3);
        if (item)
            PyTuple_SET_ITEM(result, i, item);
        else
            Py_CLEAR(result);
    }
    return result;
}

static int64_t read_some(void *source, char *buffer, size_t size)
{
    int64_t got;
    do
        got = read(*(int *)source, buffer, size);
    while (got < 0 && errno == EINTR);
    return got;
}

/* A tuple of tables, or None where the scan left the file to Python. */
static PyObject *scan_file(PyObject *arguments, int count)
{
    ScanTable tables[3] = {0};
    PyObject *result = NULL;
    int descriptor;
    long long size;
    bool taken;
    if (!PyArg_ParseTuple(arguments, "iL", &descriptor, &size) || PyType_Ready(&column_type) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    taken = count == 1 ? scan_detections(read_some, &descriptor, size, tables)
                       : scan_truths(read_some, &descriptor, size, tables);
    Py_END_ALLOW_THREADS
    result = taken ? PyTuple_New(count) : Py_NewRef(Py_None);
    for (int i = 0; taken && result && i < count; i++) {
        PyObject *table = take_table(&tables[i]);
        if (table)
            PyTuple_SET_ITEM(result, i, table);
        else
            Py_CLEAR(result);
    }
    for (int i = 0; i < count; i++)
        scan_free(&tables[i]);
    return result;
}

static PyObject *scan_detections_file(PyObject *module, PyObject *arguments)
{
    (void)module;
    return scan_file(arguments, 1);
}

static PyObject *scan_truths_file(PyObject *module, PyObject *arguments)
{
    (void)module;
    return scan_file(arguments, 3);
}

PyMethodDef scan_functions[] = {
    {"scan_detections", scan_detections_file, METH_VARARGS,
     "Columns of an open results file of that size, or None where Python must read it."},
    {"scan_truths", scan_truths_file, METH_VARARGS,
     "Columns of images and annotations of an open ground truth of that size, or None."},
    {NULL, NULL, 0, NULL},
};
