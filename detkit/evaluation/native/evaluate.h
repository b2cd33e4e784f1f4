/* The COCO evaluation in plain C; nothing here knows Python. evaluate.c says how it works. */
#ifndef DETKIT_EVALUATE_H
#define DETKIT_EVALUATE_H

#include <stdint.h>

/* The caller's arrays. Images and categories are indices that lie in their ranges: see
 * find_outside. Boxes are xywh. At most INT32_MAX truths and detections. */
typedef struct {
    int64_t count;
    const int64_t *image, *category;
    const double *boxes; /* [count, 4] */
    const double *area;
    const uint8_t *crowd, *id_is_zero;
} Truths;

typedef struct {
    int64_t count;
    const int64_t *image, *category;
    const double *boxes; /* [count, 4] */
    const double *scores;
} Detections;

typedef struct {
    Truths truths;
    Detections detections;
    int64_t num_images, num_categories;
} Dataset;

typedef struct {
    int64_t num_thresholds, num_ranges, num_limits, num_levels;
    const double *thresholds;
    const double *ranges;  /* [num_ranges, 2], both ends inclusive */
    const int64_t *limits; /* ascending */
    const double *levels;  /* of recall, ascending */
} Settings;

/* K categories, A ranges, M limits, T thresholds, R levels; zeros on entry. */
typedef struct {
    double *precision;   /* [K, A, M, T, R] */
    double *scores;      /* [K, A, M, T, R], or NULL if not wanted */
    double *recall;      /* [K, A, M, T] */
    int64_t *num_truths; /* [A, K] */
} Curves;

/* The detections within the last limit, by category, best first. */
typedef struct {
    int64_t count;  /* how many there are, at most N */
    int32_t *order; /* [N] their indices of the caller; `count` are written */
    int32_t *taken; /* [curves, N] index of the truth that each takes; -1 for none on entry */
} Takes;

/* Items by category; in a category the best first, then by image, then in the order given. */
typedef struct {
    int32_t *order;  /* [count] index of the caller */
    int64_t *starts; /* [num_categories + 1] */
} Ranking;

/* The first index that is not in 0 .. limit - 1, or -1. */
int64_t find_outside(const int64_t *index, int64_t count, int64_t limit);

/* These return 0, or -1 where memory runs out. */
int rank_items(const int64_t *image, const int64_t *category, const double *scores, int64_t count,
               int64_t num_images, int64_t num_categories, Ranking *ranking);
int draw_curves(const Dataset *data, const Settings *settings, Curves *curves);
int find_takes(const Dataset *data, const Settings *settings, Takes *takes);

/* How many items the largest category has. */
int64_t longest(const Ranking *ranking, int64_t num_categories);

void free_ranking(Ranking *ranking);

#endif
