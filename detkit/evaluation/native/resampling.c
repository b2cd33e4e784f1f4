/* The average precision of resampled images: the sums of detkit/evaluation/resampling.py.
 *
 * For each resample one walk of the detections adds up the weight seen so far; it is noted for the
 * settled ones. Then each threshold walks its own of these, from the worst to the best. Weights are
 * whole numbers, so that the order of the operations matters for the last bit of the area alone.
 */
#include "resampling.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

enum { LAST_LEVEL = 100 };
static const double STEP = 0.01; /* the level k is at k * STEP, as numpy.linspace has it */

/* A detection that is right or ignored at one threshold. */
typedef struct {
    int32_t at; /* among the settled */
    int32_t right;
} Event;

/* A settled detection under the weights of one resample. */
typedef struct {
    int64_t own, seen; /* its weight, and that of all detections up to and with it */
} Place;

/* The events of all thresholds; those of t are starts[t] .. starts[t + 1] - 1. */
static void list_events(const RankedClass *ranked, Event *events, int64_t *starts)
{
    int64_t count = 0;
    for (int64_t t = 0; t < ranked->num_thresholds; t++) {
        const uint8_t *right = ranked->right + t * ranked->num_settled;
        const uint8_t *ignored = ranked->ignored + t * ranked->num_settled;
        starts[t] = count;
        for (int64_t at = 0; at < ranked->num_settled; at++)
            if (right[at] || ignored[at])
                events[count++] = (Event){(int32_t)at, right[at]};
    }
    starts[ranked->num_thresholds] = count;
}

static void weigh_places(const RankedClass *ranked, const uint32_t *weights, Place *places)
{
    int64_t seen = 0, next = 0;
    for (int64_t at = 0; at < ranked->num_settled; at++) {
        int64_t own = 0;
        for (; next <= ranked->settled[at]; next++) {
            own = weights[ranked->image[next]];
            seen += own;
        }
        places[at] = (Place){own, seen};
    }
}

/* The area under the curve of one threshold: each level of recall counts with the highest precision
 * of the events that reach it. */
static double measure_area(const Event *events, int64_t count, const Place *places, double truths)
{
    int64_t right = 0, ignored = 0, level = 0;
    double best = 0, area = 0;
    for (int64_t i = 0; i < count; i++)
        *(events[i].right ? &right : &ignored) += places[events[i].at].own;
    for (int64_t i = count - 1; i >= 0; i--) {
        Place place = places[events[i].at];
        double precision = (double)right / ((double)(place.seen - ignored) + DBL_EPSILON);
        double recall = (double)right / truths;
        recall = recall < 1 ? recall : 1;
        int64_t reached = (int64_t)(recall * LAST_LEVEL + 0.5);
        reached -= (double)reached * STEP > recall; /* the nearest may be the one above */
        area += (double)(level - reached) * best;
        level = reached;
        best = precision > best ? precision : best;
        *(events[i].right ? &right : &ignored) -= place.own;
    }
    area += (double)(level + 1) * best; /* recall 0 is a level as well */
    return area / (LAST_LEVEL + 1);
}

int weigh_class(const RankedClass *ranked, const uint32_t *weights, int64_t num_images,
                int64_t num_resamples, double *precision)
{
    size_t num_settled = (size_t)ranked->num_settled, num_thresholds = (size_t)ranked->num_thresholds;
    Place *places = malloc((num_settled + 1) * sizeof *places);
    Event *events = malloc((num_settled * num_thresholds + 1) * sizeof *events);
    int64_t *starts = malloc((num_thresholds + 1) * sizeof *starts);
    int status = places && events && starts ? 0 : -1;
    if (!status)
        list_events(ranked, events, starts);
    for (int64_t row = 0; !status && row < num_resamples; row++, weights += num_images) {
        int64_t truths = 0;
        for (int64_t i = 0; i < ranked->num_truths; i++)
            truths += weights[ranked->truth_image[i]];
        weigh_places(ranked, weights, places);
        for (size_t t = 0; t < num_thresholds; t++, precision++)
            *precision = truths ? measure_area(events + starts[t], starts[t + 1] - starts[t],
                                               places, (double)truths)
                                : NAN;
    }
    free(places);
    free(events);
    free(starts);
    return status;
}
