/* The compiled half of detkit.evaluation, imported as detkit.evaluation._native.
 *
 * Nothing here is needed: what it offers exists in numpy as well, with the same bits. The work is
 * done in files that know no Python; here arguments are taken apart and checked. A new file adds
 * its functions to PyInit__native below and its name to ext-modules in pyproject.toml.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "evaluate.h"
#include "resampling_python.h"
#include "scan_python.h"

/* Counts with every change of what a function takes: a build from another day is not used. */
enum { INTERFACE = 4 };

enum { NUM_INPUTS = 14, MAX_OUTPUTS = 4 };

typedef struct {
    Py_buffer inputs[NUM_INPUTS]; /* 6 of truths, 4 of detections, 4 of settings */
    Py_buffer outputs[MAX_OUTPUTS];
    Dataset data;
    Settings settings;
} Arguments;

/* The product of lengths, or more than any array has. */
static int64_t times(int64_t a, int64_t b)
{
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

static int64_t items(const Py_buffer *view, size_t size) { return view->len / (Py_ssize_t)size; }

/* Whether the array has exactly `count` items; otherwise a ValueError. */
static int has_length(const Py_buffer *view, const char *name, int64_t count, size_t size)
{
    if (view->len % (Py_ssize_t)size == 0 && items(view, size) == count)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s must be %lld items of %zu bytes, got %zd bytes", name,
                 (long long)count, size, view->len);
    return 0;
}

static int indices_fit(const int64_t *index, int64_t count, int64_t limit, const char *name)
{
    int64_t at = find_outside(index, count, limit);
    if (at >= 0)
        PyErr_Format(PyExc_ValueError, "%s[%lld] must lie in 0..%lld, got %lld", name,
                     (long long)at, (long long)limit - 1, (long long)index[at]);
    return at < 0;
}

static int take_truths_apart(Arguments *args)
{
    const Py_buffer *in = args->inputs;
    int64_t count = items(&in[0], sizeof(int64_t));
    args->data.truths = (Truths){
        count, in[0].buf, in[1].buf, in[2].buf, in[3].buf, in[4].buf, in[5].buf,
    };
    return has_length(&in[0], "truths.image", count, sizeof(int64_t)) &&
           has_length(&in[1], "truths.category", count, sizeof(int64_t)) &&
           has_length(&in[2], "truths.boxes", 4 * count, sizeof(double)) &&
           has_length(&in[3], "truths.area", count, sizeof(double)) &&
           has_length(&in[4], "truths.crowd", count, sizeof(uint8_t)) &&
           has_length(&in[5], "truths.id_is_zero", count, sizeof(uint8_t)) &&
           indices_fit(in[0].buf, count, args->data.num_images, "truths.image") &&
           indices_fit(in[1].buf, count, args->data.num_categories, "truths.category");
}

static int take_detections_apart(Arguments *args)
{
    const Py_buffer *in = args->inputs + 6;
    int64_t count = items(&in[0], sizeof(int64_t));
    args->data.detections = (Detections){count, in[0].buf, in[1].buf, in[2].buf, in[3].buf};
    return has_length(&in[0], "detections.image", count, sizeof(int64_t)) &&
           has_length(&in[1], "detections.category", count, sizeof(int64_t)) &&
           has_length(&in[2], "detections.boxes", 4 * count, sizeof(double)) &&
           has_length(&in[3], "detections.scores", count, sizeof(double)) &&
           indices_fit(in[0].buf, count, args->data.num_images, "detections.image") &&
           indices_fit(in[1].buf, count, args->data.num_categories, "detections.category");
}

static int take_settings_apart(Arguments *args)
{
    const Py_buffer *in = args->inputs + 10;
    Settings settings = {
        items(&in[0], sizeof(double)), items(&in[1], 2 * sizeof(double)),
        items(&in[2], sizeof(int64_t)), items(&in[3], sizeof(double)),
        in[0].buf, in[1].buf, in[2].buf, in[3].buf,
    };
    args->settings = settings;
    if (!settings.num_thresholds || !settings.num_ranges || !settings.num_limits ||
        !settings.num_levels) {
        PyErr_SetString(PyExc_ValueError, "thresholds, ranges, limits and levels must not be empty");
        return 0;
    }
    return has_length(&in[0], "thresholds", settings.num_thresholds, sizeof(double)) &&
           has_length(&in[1], "ranges", 2 * settings.num_ranges, sizeof(double)) &&
           has_length(&in[2], "limits", settings.num_limits, sizeof(int64_t)) &&
           has_length(&in[3], "levels", settings.num_levels, sizeof(double));
}

/* (truths, detections, settings, num_images, num_categories, outputs); False: an error is set. */
static int take_apart(PyObject *tuple, Arguments *args, int num_outputs)
{
    Py_buffer *in = args->inputs, *out = args->outputs;
    long long num_images, num_categories;
    const char *format = num_outputs == 4 ? "(y*y*y*y*y*y*)(y*y*y*y*)(y*y*y*y*)LL(w*w*w*w*)"
                                          : "(y*y*y*y*y*y*)(y*y*y*y*)(y*y*y*y*)LL(w*w*)";
    if (!PyArg_ParseTuple(tuple, format, in, in + 1, in + 2, in + 3, in + 4, in + 5, in + 6, in + 7,
                          in + 8, in + 9, in + 10, in + 11, in + 12, in + 13, &num_images,
                          &num_categories, out, out + 1, out + 2, out + 3))
        return 0;
    args->data.num_images = num_images;
    args->data.num_categories = num_categories;
    int64_t most = in[0].len > in[6].len ? in[0].len : in[6].len;
    if (num_images < 0 || num_images > INT32_MAX || num_categories < 0 ||
        num_categories > INT32_MAX || most / (int64_t)sizeof(int64_t) > INT32_MAX)
        PyErr_SetString(PyExc_ValueError, "at most 2147483647 of each are possible");
    else if (take_truths_apart(args) && take_detections_apart(args) && take_settings_apart(args))
        return 1;
    return 0;
}

static void release(Arguments *args)
{
    for (int i = 0; i < NUM_INPUTS; i++)
        PyBuffer_Release(&args->inputs[i]); /* nothing where none was taken */
    for (int i = 0; i < MAX_OUTPUTS; i++)
        PyBuffer_Release(&args->outputs[i]);
}

/* Releases the arrays, and passes the result on if all went well. */
static PyObject *done(Arguments *args, int status, PyObject *result)
{
    release(args);
    if (status < 0 && !PyErr_Occurred())
        PyErr_NoMemory();
    if (PyErr_Occurred())
        Py_CLEAR(result);
    return result;
}

static PyObject *py_draw_curves(PyObject *module, PyObject *tuple)
{
    (void)module;
    Arguments args = {0};
    int status = 0;
    if (take_apart(tuple, &args, 4)) {
        const Settings *settings = &args.settings;
        Py_buffer *out = args.outputs;
        Curves curves = {out[0].buf, out[1].buf, out[2].buf, out[3].buf};
        int64_t num_cells = times(args.data.num_categories, settings->num_ranges);
        int64_t num_rows = times(times(num_cells, settings->num_limits), settings->num_thresholds);
        if (has_length(&out[0], "precision", times(num_rows, settings->num_levels), sizeof(double)) &&
            has_length(&out[1], "scores", times(num_rows, settings->num_levels), sizeof(double)) &&
            has_length(&out[2], "recall", num_rows, sizeof(double)) &&
            has_length(&out[3], "num_truths", num_cells, sizeof(int64_t))) {
            Py_BEGIN_ALLOW_THREADS
            status = draw_curves(&args.data, settings, &curves);
            Py_END_ALLOW_THREADS
        }
    }
    return done(&args, status, Py_NewRef(Py_None));
}

static PyObject *py_find_takes(PyObject *module, PyObject *tuple)
{
    (void)module;
    Arguments args = {0};
    int status = 0;
    int64_t count = 0;
    if (take_apart(tuple, &args, 2)) {
        const Settings *settings = &args.settings;
        Py_buffer *out = args.outputs;
        Takes takes = {0, out[0].buf, out[1].buf};
        int64_t most = args.data.detections.count;
        int64_t num_curves = times(settings->num_thresholds, settings->num_ranges);
        if (has_length(&out[0], "order", most, sizeof(int32_t)) &&
            has_length(&out[1], "taken", times(num_curves, most), sizeof(int32_t))) {
            Py_BEGIN_ALLOW_THREADS
            status = find_takes(&args.data, settings, &takes);
            Py_END_ALLOW_THREADS
            count = takes.count;
        }
    }
    return done(&args, status, PyLong_FromLongLong(count));
}

static PyMethodDef functions[] = {
    {"draw_curves", py_draw_curves, METH_VARARGS,
     "draw_curves(truths, detections, settings, num_images, num_categories, outputs): write the\n"
     "curves, see evaluate.h; arrays are contiguous and of the types of FlatTruths and so on."},
    {"find_takes", py_find_takes, METH_VARARGS,
     "find_takes(truths, detections, settings, num_images, num_categories, outputs): write which\n"
     "truth every detection takes; returns how many detections are within the last limit."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "detkit.evaluation._native",
    .m_doc = "The COCO evaluation in C; see detkit.evaluation.backend.",
    .m_size = 0,
};

PyMODINIT_FUNC PyInit__native(void)
{
    PyMethodDef *tables[] = {functions, scan_functions, resampling_functions};
    PyObject *module = PyModule_Create(&definition);
    for (size_t i = 0; module && i < sizeof tables / sizeof *tables; i++)
        if (PyModule_AddFunctions(module, tables[i]) < 0)
            Py_CLEAR(module);
    if (module && PyModule_AddIntMacro(module, INTERFACE) < 0)
        Py_CLEAR(module);
    return module;
}
