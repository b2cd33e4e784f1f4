/* The one order that matching and curves share: by category, best first, then by image.
 *
 * Counting sorts bring the items into categories. There a radix sort orders the scores: they fit
 * the cache then, and three passes over the upper 33 bits settle nearly all. The few that these
 * bits do not tell apart are sorted by the others.
 */
#include "evaluate.h"

#include <stdlib.h>
#include <string.h>

enum { PLACE_BITS = 31, DIGIT_BITS = 11, NUM_DIGITS = 3, BUCKETS = 1 << DIGIT_BITS, FEW = 48 };

static const uint64_t PLACE = (UINT64_C(1) << PLACE_BITS) - 1;

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

static int is_descending(const double *scores, const int32_t *items, int64_t count)
{
    for (int64_t i = 1; i < count; i++)
        if (descending_key(scores[items[i]]) < descending_key(scores[items[i - 1]]))
            return 0;
    return 1;
}

/* Sort words by their upper bits; the lower ones are places, ascending on entry. */
static void sort_words(uint64_t *words, uint64_t *spare, int64_t count)
{
    if (count < FEW) { /* an insertion sort; all words differ in their places */
        for (int64_t i = 1; i < count; i++) {
            uint64_t word = words[i];
            int64_t j = i;
            for (; j > 0 && words[j - 1] > word; j--)
                words[j] = words[j - 1];
            words[j] = word;
        }
        return;
    }
    uint32_t next[NUM_DIGITS][BUCKETS] = {{0}};
    for (int64_t i = 0; i < count; i++)
        for (int digit = 0; digit < NUM_DIGITS; digit++)
            next[digit][words[i] >> (PLACE_BITS + digit * DIGIT_BITS) & (BUCKETS - 1)]++;
    uint64_t *from = words, *to = spare;
    for (int digit = 0; digit < NUM_DIGITS; digit++) {
        int shift = PLACE_BITS + digit * DIGIT_BITS;
        uint32_t total = 0;
        for (int bucket = 0; bucket < BUCKETS; bucket++) {
            uint32_t length = next[digit][bucket];
            next[digit][bucket] = total;
            total += length;
        }
        for (int64_t i = 0; i < count; i++)
            to[next[digit][from[i] >> shift & (BUCKETS - 1)]++] = from[i];
        uint64_t *other = from;
        from = to, to = other;
    }
    if (from != words)
        memcpy(words, from, (size_t)count * sizeof *words);
}

typedef struct {
    uint64_t *words, *spare;
    int32_t *items;
} Buffers;

/* Order items by some bits of their keys: the upper 33, or the lower 31. */
static void sort_by_bits(const double *scores, int32_t *items, int64_t count, int upper,
                         const Buffers *buffers)
{
    for (int64_t i = 0; i < count; i++) {
        uint64_t key = descending_key(scores[items[i]]);
        buffers->words[i] = (upper ? key & ~PLACE : (key & PLACE) << PLACE_BITS) | (uint64_t)i;
    }
    sort_words(buffers->words, buffers->spare, count);
    memcpy(buffers->items, items, (size_t)count * sizeof *items);
    for (int64_t i = 0; i < count; i++)
        items[i] = buffers->items[buffers->words[i] & PLACE];
}

static void sort_by_score(const double *scores, int32_t *items, int64_t count,
                          const Buffers *buffers)
{
    const uint64_t *words = buffers->words;
    sort_by_bits(scores, items, count, 1, buffers);
    for (int64_t start = 0, stop; start < count; start = stop) {
        stop = start + 1;
        while (stop < count && words[stop] >> PLACE_BITS == words[start] >> PLACE_BITS)
            stop++;
        if (stop - start > 1 && !is_descending(scores, items + start, stop - start)) {
            Buffers rest = {buffers->words + start, buffers->spare, buffers->items};
            sort_by_bits(scores, items + start, stop - start, 0, &rest);
        }
    }
}

static int sort_all_by_score(const double *scores, Ranking *ranking, int64_t num_categories)
{
    int64_t most = 0;
    for (int64_t k = 0; k < num_categories; k++) {
        int64_t length = ranking->starts[k + 1] - ranking->starts[k];
        most = length > most ? length : most;
    }
    Buffers buffers = {
        calloc((size_t)most + 1, sizeof *buffers.words),
        calloc((size_t)most + 1, sizeof *buffers.spare),
        calloc((size_t)most + 1, sizeof *buffers.items),
    };
    int failed = !buffers.words || !buffers.spare || !buffers.items;
    for (int64_t k = 0; k < num_categories && !failed; k++) {
        int64_t start = ranking->starts[k];
        sort_by_score(scores, ranking->order + start, ranking->starts[k + 1] - start, &buffers);
    }
    free(buffers.words), free(buffers.spare), free(buffers.items);
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
