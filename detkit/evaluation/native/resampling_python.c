/* The sums of resampling.c for Python: here the arrays are checked. */
#define PY_SSIZE_T_CLEAN
#include "resampling_python.h"

#include "resampling.h"

enum { TRUTH_IMAGE, IMAGE, SETTLED, RIGHT, IGNORED, WEIGHTS, PRECISION, NUM_ARRAYS };

static int are_indices(const int64_t *index, int64_t count, int64_t limit)
{
    for (int64_t i = 0; i < count; i++)
        if (index[i] < 0 || index[i] >= limit)
            return 0;
    return 1;
}

static int is_increasing(const int64_t *values, int64_t count)
{
    for (int64_t i = 1; i < count; i++)
        if (values[i] <= values[i - 1])
            return 0;
    return 1;
}

/* Whether the array is [a, b] of items of this size. */
static int has_shape(const Py_buffer *view, int64_t a, int64_t b, size_t size)
{
    int64_t product;
    return a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, &product) &&
           !__builtin_mul_overflow(product, (int64_t)size, &product) && product == view->len;
}

static int64_t items(const Py_buffer *view) { return view->len / (Py_ssize_t)sizeof(int64_t); }

/* What is wrong with the arrays, or NULL. */
static const char *find_fault(const RankedClass *ranked, const Py_buffer *view, int64_t num_images,
                              int64_t num_resamples)
{
    if (num_images > INT32_MAX || num_resamples > INT32_MAX || ranked->num_truths > INT32_MAX ||
        ranked->num_detections > INT32_MAX || ranked->num_thresholds > UINT16_MAX)
        return "at most 65535 thresholds and 2147483647 of all others are possible";
    if (!has_shape(&view[RIGHT], ranked->num_thresholds, ranked->num_settled, 1) ||
        !has_shape(&view[IGNORED], ranked->num_thresholds, ranked->num_settled, 1))
        return "right and ignored must be [thresholds, settled]";
    if (!has_shape(&view[WEIGHTS], num_resamples, num_images, sizeof(uint32_t)))
        return "weights must be [resamples, images]";
    if (!has_shape(&view[PRECISION], num_resamples, ranked->num_thresholds, sizeof(double)))
        return "precision must be [resamples, thresholds]";
    if (!are_indices(ranked->truth_image, ranked->num_truths, num_images) ||
        !are_indices(ranked->image, ranked->num_detections, num_images))
        return "images must lie in 0..images - 1";
    if (!are_indices(ranked->settled, ranked->num_settled, ranked->num_detections) ||
        !is_increasing(ranked->settled, ranked->num_settled))
        return "settled must ascend within 0..detections - 1";
    return NULL;
}

static PyObject *py_weigh_class(PyObject *module, PyObject *arguments)
{
    (void)module;
    Py_buffer view[NUM_ARRAYS] = {0};
    long long num_images, num_resamples, num_thresholds;
    int status = 0;
    if (PyArg_ParseTuple(arguments, "(y*y*y*y*y*)y*w*LLL", &view[TRUTH_IMAGE], &view[IMAGE],
                         &view[SETTLED], &view[RIGHT], &view[IGNORED], &view[WEIGHTS],
                         &view[PRECISION], &num_resamples, &num_images, &num_thresholds)) {
        RankedClass ranked = {
            items(&view[TRUTH_IMAGE]), items(&view[IMAGE]),     items(&view[SETTLED]),
            num_thresholds,            view[TRUTH_IMAGE].buf,   view[IMAGE].buf,
            view[SETTLED].buf,         view[RIGHT].buf,         view[IGNORED].buf,
        };
        const char *fault = find_fault(&ranked, view, num_images, num_resamples);
        if (fault) {
            PyErr_SetString(PyExc_ValueError, fault);
        } else {
            Py_BEGIN_ALLOW_THREADS
            status = weigh_class(&ranked, view[WEIGHTS].buf, num_images, num_resamples,
                                 view[PRECISION].buf);
            Py_END_ALLOW_THREADS
        }
    }
    for (int i = 0; i < NUM_ARRAYS; i++)
        PyBuffer_Release(&view[i]); /* nothing where none was taken */
    if (PyErr_Occurred())
        return NULL;
    if (status < 0)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyMethodDef resampling_functions[] = {
    {"weigh_class", py_weigh_class, METH_VARARGS,
     "weigh_class((truth_image, image, settled, right, ignored), weights, precision, resamples,\n"
     "images, thresholds): write the average precision of a category, see resampling.h."},
    {NULL, NULL, 0, NULL},
};
