/* The average precision of resampled images in plain C; see detkit/evaluation/resampling.py. */
#ifndef DETKIT_RESAMPLING_H
#define DETKIT_RESAMPLING_H

#include <stdint.h>

/* A category; detections best first. Images lie in their range; at most UINT16_MAX thresholds and
 * INT32_MAX of all others, so that no sum of weights overflows. */
typedef struct {
    int64_t num_truths, num_detections, num_settled, num_thresholds;
    const int64_t *truth_image; /* of the truths that count */
    const int64_t *image;       /* of the detections */
    const int64_t *settled;     /* ascending: those that are no false positive at some threshold */
    const uint8_t *right;       /* [thresholds, settled] a true positive */
    const uint8_t *ignored;     /* [thresholds, settled] neither true nor false */
} RankedClass;

/* Average precision [resamples, thresholds] under the weights [resamples, images], NaN where the
 * truths weigh nothing. Returns 0, or -1 where memory runs out. */
int weigh_class(const RankedClass *ranked, const uint32_t *weights, int64_t num_images,
                int64_t num_resamples, double *precision);

#endif
