/* The evaluation for Python: takes the arguments apart, checks them, and lets other threads run. */
#define PY_SSIZE_T_CLEAN
#include "evaluate_python.h"

#include "evaluate.h"

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

/* Whether the array has exactly `count` items; otherwise a ValueError. */
static int has_length(const Py_buffer *view, const char *name, int64_t count, size_t size)
{
    if (view->len % (Py_ssize_t)size == 0 && view->len / (Py_ssize_t)size == count)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s must be %lld items of %zu bytes, got %zd bytes", name,
                 (long long)count, size, view->len);
    return 0;
}

static int inputs_fit(const Arguments *args)
{
    const Settings *settings = &args->settings;
    int64_t truths = args->data.truths.count, detections = args->data.detections.count;
    const struct {
        const char *name;
        int64_t count;
        size_t size;
    } wanted[NUM_INPUTS] = {
        {"truths.image", truths, sizeof(int64_t)},
        {"truths.category", truths, sizeof(int64_t)},
        {"truths.boxes", 4 * truths, sizeof(double)},
        {"truths.area", truths, sizeof(double)},
        {"truths.crowd", truths, sizeof(uint8_t)},
        {"truths.id_is_zero", truths, sizeof(uint8_t)},
        {"detections.image", detections, sizeof(int64_t)},
        {"detections.category", detections, sizeof(int64_t)},
        {"detections.boxes", 4 * detections, sizeof(double)},
        {"detections.scores", detections, sizeof(double)},
        {"thresholds", settings->num_thresholds, sizeof(double)},
        {"ranges", 2 * settings->num_ranges, sizeof(double)},
        {"limits", settings->num_limits, sizeof(int64_t)},
        {"levels", settings->num_levels, sizeof(double)},
    };
    for (int i = 0; i < NUM_INPUTS; i++)
        if (!has_length(&args->inputs[i], wanted[i].name, wanted[i].count, wanted[i].size))
            return 0;
    if (settings->num_thresholds && settings->num_ranges && settings->num_limits &&
        settings->num_levels)
        return 1;
    PyErr_SetString(PyExc_ValueError, "thresholds, ranges, limits and levels must not be empty");
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

static int data_fits(const Dataset *data)
{
    const Truths *truths = &data->truths;
    const Detections *found = &data->detections;
    int64_t images = data->num_images, categories = data->num_categories;
    if (images < 0 || images > INT32_MAX || categories < 0 || categories > INT32_MAX ||
        truths->count > INT32_MAX || found->count > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "at most 2147483647 of each are possible");
        return 0;
    }
    return indices_fit(truths->image, truths->count, images, "truths.image") &&
           indices_fit(truths->category, truths->count, categories, "truths.category") &&
           indices_fit(found->image, found->count, images, "detections.image") &&
           indices_fit(found->category, found->count, categories, "detections.category");
}

/* (truths, detections, settings, num_images, num_categories, outputs); 0: an error is set. */
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
    const int64_t size = sizeof(double); /* and of an index */
    args->data = (Dataset){
        {in[0].len / size, in[0].buf, in[1].buf, in[2].buf, in[3].buf, in[4].buf, in[5].buf},
        {in[6].len / size, in[6].buf, in[7].buf, in[8].buf, in[9].buf},
        num_images,
        num_categories,
    };
    args->settings = (Settings){
        in[10].len / size, in[11].len / (2 * size), in[12].len / size, in[13].len / size,
        in[10].buf,        in[11].buf,              in[12].buf,        in[13].buf,
    };
    return inputs_fit(args) && data_fits(&args->data);
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
        double *scores = out[1].len ? out[1].buf : NULL;
        Curves curves = {out[0].buf, scores, out[2].buf, out[3].buf};
        int64_t num_cells = times(args.data.num_categories, settings->num_ranges);
        int64_t num_rows = times(times(num_cells, settings->num_limits), settings->num_thresholds);
        int64_t num_values = times(num_rows, settings->num_levels);
        if (has_length(&out[0], "precision", num_values, sizeof(double)) &&
            has_length(&out[1], "scores", scores ? num_values : 0, sizeof(double)) &&
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

PyMethodDef evaluate_functions[] = {
    {"draw_curves", py_draw_curves, METH_VARARGS,
     "draw_curves(truths, detections, settings, num_images, num_categories, outputs): write the\n"
     "curves, see evaluate.h; arrays are contiguous and of the types of FlatTruths and so on.\n"
     "Scores are left out where their array is empty."},
    {"find_takes", py_find_takes, METH_VARARGS,
     "find_takes(truths, detections, settings, num_images, num_categories, outputs): write which\n"
     "truth every detection takes; returns how many detections are within the last limit."},
    {NULL, NULL, 0, NULL},
};
