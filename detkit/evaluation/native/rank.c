/* The one order that matching and curves share: by category, best first, then by image.
 *
 * Counting sorts bring the items into categories, and there a radix sort orders the scores, byte by
 * byte: a category mostly fits the cache. All of them are stable and take time that grows with the
 * number of items alone, whatever the scores.
 */
#include "evaluate.h"

#include <stdlib.h>
#include <string.h>

enum { BYTES = 8, BUCKETS = 256 };

typedef struct {
    uint64_t key;
    int32_t item;
} Keyed;

int64_t find_outside(const int64_t *index, int64_t count, int64_t limit)
{
    for (int64_t i = 0; i < count; i++)
        if ((uint64_t)index[i] >= (uint64_t)limit)
            return i;
    return -1;
}

/* Stable order of `from` (of 0, 1, .. if NULL) by key; starts[k] is where key k begins. */
static void sort_by_counting(const int64_t *keys, const int32_t *from, int64_t count,
                             int64_t num_keys, int32_t *to, int64_t *starts)
{
    memset(starts, 0, (size_t)(num_keys + 1) * sizeof *starts);
    for (int64_t i = 0; i < count; i++)
        starts[keys[i]]++;
    for (int64_t key = 0, total = 0; key <= num_keys; key++) {
        int64_t length = starts[key];
        starts[key] = total;
        total += length;
    }
    for (int64_t i = 0; i < count; i++) {
        int32_t item = from ? from[i] : (int32_t)i;
        to[starts[keys[item]]++] = item;
    }
    /* each start has moved to the next one */
    memmove(starts + 1, starts, (size_t)num_keys * sizeof *starts);
    starts[0] = 0;
}

static int is_ascending(const int64_t *values, int64_t count)
{
    for (int64_t i = 1; i < count; i++)
        if (values[i] < values[i - 1])
            return 0;
    return 1;
}

/* A word that is smaller for higher scores; -0.0 and 0.0 are equal, NaN comes last. */
static uint64_t descending_key(double score)
{
    uint64_t bits;
    if (score != score)
        return UINT64_MAX;
    score += 0.0; /* -0.0 becomes 0.0 */
    memcpy(&bits, &score, sizeof bits);
    return bits >> 63 ? bits : ~bits ^ (UINT64_C(1) << 63);
}

/* Stable; of the bytes of the keys only those that differ are looked at. */
static void sort_by_score(const double *scores, int32_t *items, int64_t count, Keyed *from,
                          Keyed *to)
{
    int32_t next[BYTES][BUCKETS] = {{0}};
    for (int64_t i = 0; i < count; i++)
        from[i] = (Keyed){descending_key(scores[items[i]]), items[i]};
    for (int64_t i = 0; i < count; i++) /* apart, so that reading the scores waits for nothing */
        for (int byte = 0; byte < BYTES; byte++)
            next[byte][from[i].key >> 8 * byte & (BUCKETS - 1)]++;
    for (int byte = 0; byte < BYTES; byte++) {
        if (count && next[byte][from[0].key >> 8 * byte & (BUCKETS - 1)] == count)
            continue;
        for (int32_t bucket = 0, total = 0; bucket < BUCKETS; bucket++) {
            int32_t length = next[byte][bucket];
            next[byte][bucket] = total;
            total += length;
        }
        for (int64_t i = 0; i < count; i++)
            to[next[byte][from[i].key >> 8 * byte & (BUCKETS - 1)]++] = from[i];
        Keyed *other = from;
        from = to, to = other;
    }
    for (int64_t i = 0; i < count; i++)
        items[i] = from[i].item;
}

int64_t longest(const Ranking *ranking, int64_t num_categories)
{
    int64_t most = 0;
    for (int64_t k = 0; k < num_categories; k++) {
        int64_t length = ranking->starts[k + 1] - ranking->starts[k];
        most = length > most ? length : most;
    }
    return most;
}

static int sort_all_by_score(const double *scores, Ranking *ranking, int64_t num_categories)
{
    size_t most = (size_t)longest(ranking, num_categories) + 1;
    Keyed *keyed = calloc(most, sizeof *keyed), *spare = calloc(most, sizeof *spare);
    int failed = !keyed || !spare;
    for (int64_t k = 0; k < num_categories && !failed; k++) {
        int64_t start = ranking->starts[k], count = ranking->starts[k + 1] - start;
        sort_by_score(scores, ranking->order + start, count, keyed, spare);
    }
    free(keyed), free(spare);
    return failed ? -1 : 0;
}

/* Without scores the items of a category stay in the order of the images. */
int rank_items(const int64_t *image, const int64_t *category, const double *scores, int64_t count,
               int64_t num_images, int64_t num_categories, Ranking *ranking)
{
    int32_t *by_image = NULL;
    int64_t *starts = NULL;
    int failed = 1;
    ranking->order = calloc((size_t)count + 1, sizeof *ranking->order);
    ranking->starts = calloc((size_t)num_categories + 1, sizeof *ranking->starts);
    if (!ranking->order || !ranking->starts)
        goto done;
    if (!is_ascending(image, count)) { /* files mostly are */
        by_image = calloc((size_t)count, sizeof *by_image);
        starts = calloc((size_t)num_images + 1, sizeof *starts);
        if (!by_image || !starts)
            goto done;
        sort_by_counting(image, NULL, count, num_images, by_image, starts);
    }
    sort_by_counting(category, by_image, count, num_categories, ranking->order, ranking->starts);
    failed = scores && sort_all_by_score(scores, ranking, num_categories) < 0;
done:
    free(by_image), free(starts);
    return failed ? -1 : 0;
}

void free_ranking(Ranking *ranking)
{
    free(ranking->order), free(ranking->starts);
}
