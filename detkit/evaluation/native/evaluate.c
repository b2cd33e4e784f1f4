/* Matches and precision-recall curves of the COCO metric (pycocotools, COCOeval), in one pass.
 *
 * The definition: in each image and category the detections, best first, take the free truth of
 * highest overlap that reaches the threshold, of equal ones the later; truths that do not count
 * (crowds, areas out of the range) only where no counting one can be taken, and a crowd stays free.
 *
 * Detections of a category are walked once, best first over all images, with what each image has
 * left. A curve is one (area range, threshold) and one bit of a word, so that a detection takes
 * its truths for up to 64 curves at once. Of the curves only true positives are walked: the false
 * ones before it are the detections of the range so far less those that took a truth. A level of
 * recall keeps the highest precision of the true positives that reach it and no higher level; what
 * holds from a level on follows from right to left at the end.
 *
 * Letters: K categories, A area ranges, M limits on detections, T thresholds, R levels of recall.
 */
#include "evaluate.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0
#error "intermediate results wider than double would change the last bits"
#endif

enum { CURVES_PER_BLOCK = 64 };

typedef struct {
    double left, top, right, bottom, area;
} Box;

typedef struct {
    Box box;
    double score;
    int32_t image, index; /* of the caller */
} Found;

typedef struct {
    Box box;
    uint64_t counting; /* curves for which it is no crowd and in the range */
    uint64_t free;     /* curves for which it can be taken */
    int32_t index;     /* of the caller */
    uint8_t crowd, id_is_zero;
} Truth;

/* The truths of one image in the category at hand, and how many of its detections have come. */
typedef struct {
    int32_t first, count, seen;
} Cell;

typedef struct {
    double iou;
    Truth *truth;
} Candidate;

/* Up to 64 curves; area ranges are counted from the first of the block. */
typedef struct {
    int num_curves, num_ranges, num_steps;
    int64_t first_curve, first_range;
    int range_of[CURVES_PER_BLOCK];
    int64_t first_row[CURVES_PER_BLOCK]; /* in the tables of a category, for the first limit */
    double low[CURVES_PER_BLOCK], high[CURVES_PER_BLOCK];
    uint64_t of_range[CURVES_PER_BLOCK];    /* the curves of each range */
    double steps[CURVES_PER_BLOCK];         /* thresholds, ascending */
    uint64_t reached[CURVES_PER_BLOCK + 1]; /* curves reached by an overlap above so many steps */
} Block;

/* What the walk has counted, for each limit and curve (or range) of the block. */
typedef struct {
    int32_t positives[CURVES_PER_BLOCK];
    int32_t matched[CURVES_PER_BLOCK]; /* detections in the range that took a truth */
    int32_t level[CURVES_PER_BLOCK];   /* highest that is reached, -1 before the first positive */
    int32_t inside[CURVES_PER_BLOCK];  /* by range: detections that lie in it */
} Counts;

typedef struct {
    const Dataset *data;
    const Settings *settings;
    Curves *curves; /* NULL if not wanted */
    Takes *takes;   /* NULL if not wanted */
    Ranking truth_ranking, ranking;
    /* the category at hand */
    int64_t category, num_truths, num_found;
    Truth *truths; /* [num_truths] by image */
    Found *found;  /* [num_found] best first */
    Cell *cells;   /* [num_images], all zero but for these */
    /* the curves at hand */
    Block block;
    Counts *counts; /* [M] */
    int32_t *need;  /* [ranges of the block, R + 1] fewest true positives that reach the level */
    Candidate *candidates;
} Walk;

/* What a detection takes: the curves where it takes any truth, and one that counts. */
typedef struct {
    uint64_t any, positive;
} Taken;

static double smaller(double a, double b) { return a < b ? a : b; }
static double larger(double a, double b) { return a > b ? a : b; }
static int lowest_bit(uint64_t word) { return __builtin_ctzll(word); }

/* ---- Overlap ------------------------------------------------------------------------------- */

static Box box_of(const double *xywh)
{
    Box box = {xywh[0], xywh[1], xywh[2] + xywh[0], xywh[3] + xywh[1], xywh[2] * xywh[3]};
    if (isnan(box.right) || isnan(box.bottom)) /* NaN in any of the four: it meets no other box */
        box.left = INFINITY, box.right = -INFINITY;
    return box;
}

/* As bbIou of pycocotools' maskApi.c to the last bit; areas that underflow to 0 do not overlap.
 * One branch decides, for most pairs are apart: overlaps that are clearly below `enough` are 0. */
static double overlap(const Box *box, const Truth *truth, double enough)
{
    const Box *other = &truth->box;
    double width = smaller(box->right, other->right) - larger(box->left, other->left);
    double height = smaller(box->bottom, other->bottom) - larger(box->top, other->top);
    double shared = width * height;
    double all = truth->crowd ? box->area : box->area + other->area - shared;
    if ((width > 0) & (height > 0) & !(shared < enough * all))
        return shared > 0 ? shared / all : 0;
    return 0;
}

/* ---- Matching ------------------------------------------------------------------------------ */

/* The larger overlap first, of equal ones the later truth. */
static int by_preference(const void *left, const void *right)
{
    const Candidate *a = left, *b = right;
    if (a->iou != b->iou)
        return a->iou > b->iou ? -1 : 1;
    return a->truth > b->truth ? -1 : 1;
}

static int64_t find_candidates(const Walk *walk, const Box *box, const Cell *cell)
{
    int64_t count = 0;
    double enough = walk->block.steps[0] * (1 - 1e-9); /* below by more than rounding can move */
    Truth *truth = walk->truths + cell->first;
    for (Truth *end = truth + cell->count; truth < end; truth++) {
        double iou = overlap(box, truth, enough);
        if (iou >= walk->block.steps[0])
            walk->candidates[count++] = (Candidate){iou, truth};
    }
    if (count > 1)
        qsort(walk->candidates, (size_t)count, sizeof *walk->candidates, by_preference);
    return count;
}

static uint64_t curves_reached(const Block *block, double iou)
{
    int steps = 0;
    for (int i = 0; i < block->num_steps; i++)
        steps += block->steps[i] <= iou;
    return block->reached[steps];
}

/* Note for the last of the `count` detections that it takes the truth. */
static void note_takes(const Walk *walk, uint64_t take, const Truth *truth)
{
    int32_t *taken = walk->takes->taken + walk->takes->count - 1;
    for (; take; take &= take - 1)
        taken[(walk->block.first_curve + lowest_bit(take)) * walk->data->detections.count] =
            truth->index;
}

static Taken take_truths(Walk *walk, int64_t num_candidates)
{
    Taken taken = {0, 0};
    uint64_t open = ~UINT64_C(0);
    for (int counting = 1; counting >= 0; counting--)
        for (int64_t i = 0; i < num_candidates; i++) {
            Truth *truth = walk->candidates[i].truth;
            uint64_t kind = counting ? truth->counting : ~truth->counting;
            uint64_t reached = curves_reached(&walk->block, walk->candidates[i].iou);
            uint64_t take = reached & kind & truth->free & open;
            open &= ~take;
            truth->free &= truth->crowd ? ~UINT64_C(0) : ~take;
            if (walk->takes)
                note_takes(walk, take, truth);
            /* pycocotools notes a match by the truth's id, so that it takes id 0 for none */
            take &= truth->id_is_zero ? ~truth->counting : ~UINT64_C(0);
            taken.any |= take;
            taken.positive |= take & truth->counting;
        }
    return taken;
}

/* ---- Curves -------------------------------------------------------------------------------- */

/* Where the levels of a curve are in the tables. */
static int64_t row_of(const Walk *walk, int curve, int64_t limit)
{
    const Settings *settings = walk->settings;
    int64_t num_rows = settings->num_ranges * settings->num_limits * settings->num_thresholds;
    return walk->category * num_rows + limit * settings->num_thresholds +
           walk->block.first_row[curve];
}

/* Count the detection in its ranges for the limits from `first` on; returns the curves of these. */
static uint64_t count_inside(Walk *walk, double area, int64_t first)
{
    const Block *block = &walk->block;
    uint64_t ranges = 0, curves = 0;
    for (int range = 0; range < block->num_ranges; range++) {
        uint64_t inside = (area >= block->low[range]) & (area <= block->high[range]);
        ranges |= inside << range;
    }
    for (; ranges; ranges &= ranges - 1) {
        int range = lowest_bit(ranges);
        curves |= block->of_range[range];
        for (int64_t limit = first; limit < walk->settings->num_limits; limit++)
            walk->counts[limit].inside[range]++;
    }
    return curves;
}

static void add_positive(Walk *walk, int64_t limit, int curve, double score)
{
    Counts *counts = walk->counts + limit;
    int64_t num_levels = walk->settings->num_levels;
    int64_t row = row_of(walk, curve, limit) * num_levels;
    int range = walk->block.range_of[curve];
    const int32_t *need = walk->need + range * (num_levels + 1);
    int32_t positives = ++counts->positives[curve], level = counts->level[curve];
    for (; positives >= need[level + 1]; level++)
        if (walk->curves->scores)
            walk->curves->scores[row + level + 1] = score;
    counts->level[curve] = level;
    if (level < 0) /* the first level is above 0 and not reached yet */
        return;
    int32_t false_positives = counts->inside[range] - counts->matched[curve];
    double precision = positives / ((double)(false_positives + positives) + DBL_EPSILON);
    double *best = walk->curves->precision + row + level;
    *best = larger(precision, *best);
}

static void add_taken(Walk *walk, int64_t limit, Taken taken, uint64_t inside, double score)
{
    for (uint64_t bits = taken.any & inside; bits; bits &= bits - 1)
        walk->counts[limit].matched[lowest_bit(bits)]++;
    for (uint64_t bits = taken.positive; bits; bits &= bits - 1)
        add_positive(walk, limit, lowest_bit(bits), score);
}

/* Fewest true positives whose recall reaches each level, by pycocotools' own comparison. */
static void find_needs(const double *levels, int64_t num_levels, int64_t truths, int32_t *need)
{
    for (int64_t r = 0; r < num_levels; r++) {
        double guess = ceil(levels[r] * (double)truths);
        int64_t n = guess > 0 ? (guess < (double)truths ? (int64_t)guess : truths) : 0;
        while (n > 0 && (double)(n - 1) / (double)truths >= levels[r])
            n--;
        while (n <= truths && !((double)n / (double)truths >= levels[r]))
            n++;
        need[r] = (int32_t)(n <= truths ? n : INT32_MAX);
    }
    need[num_levels] = INT32_MAX; /* no level after the last */
}

static void fill(double *values, int64_t count, double value)
{
    for (int64_t i = 0; i < count; i++)
        values[i] = value;
}

static void finish_curve(Walk *walk, int curve, int64_t limit)
{
    const Settings *settings = walk->settings;
    int64_t row = row_of(walk, curve, limit), num_levels = settings->num_levels;
    double *precision = walk->curves->precision + row * num_levels;
    double *scores = walk->curves->scores ? walk->curves->scores + row * num_levels : NULL;
    int64_t range = walk->block.first_range + walk->block.range_of[curve];
    int64_t truths = walk->curves->num_truths[range * walk->data->num_categories + walk->category];
    if (!truths) {
        fill(precision, num_levels, -1);
        fill(scores, scores ? num_levels : 0, -1);
        walk->curves->recall[row] = -1;
        return;
    }
    for (int32_t r = walk->counts[limit].level[curve]; r > 0; r--)
        precision[r - 1] = larger(precision[r - 1], precision[r]);
    double top_score = walk->num_found ? walk->found->score : 0;
    for (int64_t r = 0; scores && r < num_levels && settings->levels[r] <= 0; r++)
        scores[r] = top_score; /* the first detection, right or wrong, reaches recall 0 */
    walk->curves->recall[row] = walk->counts[limit].positives[curve] / (double)truths;
}

/* ---- One category -------------------------------------------------------------------------- */

static void gather_truths(Walk *walk)
{
    const Truths *truths = &walk->data->truths;
    int64_t start = walk->truth_ranking.starts[walk->category];
    walk->num_truths = walk->truth_ranking.starts[walk->category + 1] - start;
    for (int64_t i = 0; i < walk->num_truths; i++) {
        int32_t item = walk->truth_ranking.order[start + i];
        Cell *cell = walk->cells + truths->image[item];
        if (!cell->count++)
            cell->first = (int32_t)i;
        Truth *truth = walk->truths + i;
        *truth = (Truth){.box = box_of(truths->boxes + 4 * (int64_t)item), .index = item};
        truth->crowd = truths->crowd[item] != 0;
        truth->id_is_zero = truths->id_is_zero[item] != 0;
    }
}

/* The walk branches at every step; reading from all over the caller's arrays is faster before. */
static void gather_detections(Walk *walk)
{
    const Detections *detections = &walk->data->detections;
    int64_t start = walk->ranking.starts[walk->category];
    walk->num_found = walk->ranking.starts[walk->category + 1] - start;
    for (int64_t i = 0; i < walk->num_found; i++) {
        int32_t item = walk->ranking.order[start + i];
        walk->found[i] = (Found){box_of(detections->boxes + 4 * (int64_t)item),
                                 detections->scores[item], (int32_t)detections->image[item], item};
    }
}

/* Which curves each truth counts for, how many count, and what levels of recall need. */
static void begin_truths(Walk *walk)
{
    const Block *block = &walk->block;
    int64_t counting[CURVES_PER_BLOCK] = {0}, num_levels = walk->settings->num_levels;
    for (Truth *truth = walk->truths; truth < walk->truths + walk->num_truths; truth++) {
        double area = walk->data->truths.area[truth->index];
        truth->free = ~UINT64_C(0);
        truth->counting = 0;
        for (int range = 0; range < block->num_ranges && !truth->crowd; range++)
            if (area >= block->low[range] && area <= block->high[range]) {
                truth->counting |= block->of_range[range];
                counting[range]++;
            }
    }
    for (int range = 0; range < block->num_ranges && walk->curves; range++) {
        int64_t row = (block->first_range + range) * walk->data->num_categories;
        walk->curves->num_truths[row + walk->category] = counting[range];
        find_needs(walk->settings->levels, num_levels, counting[range],
                   walk->need + range * (num_levels + 1));
    }
}

/* The first limit that the detection of this rank is within. */
static int64_t first_limit(const Settings *settings, int32_t rank)
{
    int64_t limit = 0;
    for (int64_t i = 0; i < settings->num_limits; i++) /* no branch: ranks are all but random */
        limit += rank >= settings->limits[i];
    return limit;
}

static void walk_detections(Walk *walk)
{
    int64_t num_limits = walk->settings->num_limits;
    for (const Found *found = walk->found; found < walk->found + walk->num_found; found++) {
        Cell *cell = walk->cells + found->image;
        int64_t first = first_limit(walk->settings, cell->seen++);
        if (first == num_limits)
            continue;
        if (walk->takes)
            walk->takes->order[walk->takes->count++] = found->index;
        uint64_t inside = count_inside(walk, found->box.area, first);
        int64_t num_candidates = cell->count ? find_candidates(walk, &found->box, cell) : 0;
        if (!num_candidates)
            continue;
        Taken taken = take_truths(walk, num_candidates);
        for (int64_t limit = first; limit < num_limits && walk->curves; limit++)
            add_taken(walk, limit, taken, inside, found->score);
    }
}

/* ---- All of it ----------------------------------------------------------------------------- */

static int ascending(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* The curves from this one on, range by range; returns where the next block begins. */
static int64_t begin_block(Block *block, const Settings *settings, int64_t first_curve)
{
    int64_t num_curves = settings->num_ranges * settings->num_thresholds - first_curve;
    memset(block, 0, sizeof *block);
    block->num_curves = (int)(num_curves < CURVES_PER_BLOCK ? num_curves : CURVES_PER_BLOCK);
    block->first_curve = first_curve;
    block->first_range = first_curve / settings->num_thresholds;
    for (int curve = 0; curve < block->num_curves; curve++) {
        int64_t range = (first_curve + curve) / settings->num_thresholds;
        int64_t threshold = (first_curve + curve) % settings->num_thresholds;
        int i = (int)(range - block->first_range);
        block->low[i] = settings->ranges[2 * range];
        block->high[i] = settings->ranges[2 * range + 1];
        block->of_range[i] |= UINT64_C(1) << curve;
        block->range_of[curve] = i;
        block->first_row[curve] = first_curve + curve +
                                  range * (settings->num_limits - 1) * settings->num_thresholds;
        block->num_ranges = i + 1;
        block->steps[curve] = settings->thresholds[threshold];
    }
    qsort(block->steps, (size_t)block->num_curves, sizeof *block->steps, ascending);
    for (int curve = 0; curve < block->num_curves; curve++)
        if (!curve || block->steps[curve] > block->steps[block->num_steps - 1])
            block->steps[block->num_steps++] = block->steps[curve];
    for (int step = 0; step < block->num_steps; step++)
        for (int curve = 0; curve < block->num_curves; curve++) {
            int64_t threshold = (first_curve + curve) % settings->num_thresholds;
            if (settings->thresholds[threshold] <= block->steps[step])
                block->reached[step + 1] |= UINT64_C(1) << curve;
        }
    return first_curve + block->num_curves;
}

static void evaluate_block(Walk *walk)
{
    int64_t num_limits = walk->settings->num_limits;
    begin_truths(walk);
    for (int64_t limit = 0; limit < num_limits; limit++) {
        walk->counts[limit] = (Counts){0};
        for (int curve = 0; curve < CURVES_PER_BLOCK; curve++)
            walk->counts[limit].level[curve] = -1;
    }
    walk_detections(walk);
    for (int64_t i = 0; i < walk->num_found; i++)
        walk->cells[walk->found[i].image].seen = 0;
    for (int curve = 0; curve < walk->block.num_curves && walk->curves; curve++)
        for (int64_t limit = 0; limit < num_limits; limit++)
            finish_curve(walk, curve, limit);
}

static void evaluate_category(Walk *walk)
{
    int64_t num_curves = walk->settings->num_ranges * walk->settings->num_thresholds;
    int64_t takes_before = walk->takes ? walk->takes->count : 0;
    gather_truths(walk);
    gather_detections(walk);
    for (int64_t curve = 0; curve < num_curves;) {
        if (walk->takes)
            walk->takes->count = takes_before; /* every block goes over the same detections */
        curve = begin_block(&walk->block, walk->settings, curve);
        evaluate_block(walk);
    }
    for (int64_t i = 0; i < walk->num_truths; i++)
        walk->cells[walk->data->truths.image[walk->truths[i].index]] = (Cell){0, 0, 0};
}

static int evaluate(const Dataset *data, const Settings *settings, Curves *curves, Takes *takes)
{
    const Truths *truths = &data->truths;
    const Detections *detections = &data->detections;
    Walk walk = {.data = data, .settings = settings, .curves = curves, .takes = takes};
    int failed = rank_items(truths->image, truths->category, NULL, truths->count,
                            data->num_images, data->num_categories, &walk.truth_ranking) ||
                 rank_items(detections->image, detections->category, detections->scores,
                            detections->count, data->num_images, data->num_categories,
                            &walk.ranking);
    if (!failed) {
        size_t most_truths = (size_t)longest(&walk.truth_ranking, data->num_categories) + 1;
        size_t most_found = (size_t)longest(&walk.ranking, data->num_categories) + 1;
        walk.cells = calloc((size_t)data->num_images + 1, sizeof *walk.cells);
        walk.truths = calloc(most_truths, sizeof *walk.truths);
        walk.found = calloc(most_found, sizeof *walk.found);
        walk.candidates = calloc(most_truths, sizeof *walk.candidates);
        walk.counts = calloc((size_t)settings->num_limits, sizeof *walk.counts);
        walk.need = calloc((size_t)settings->num_levels + 1, CURVES_PER_BLOCK * sizeof *walk.need);
        failed = !walk.cells || !walk.truths || !walk.found || !walk.candidates || !walk.counts ||
                 !walk.need;
    }
    for (; walk.category < data->num_categories && !failed; walk.category++)
        evaluate_category(&walk);
    free_ranking(&walk.truth_ranking), free_ranking(&walk.ranking);
    free(walk.cells), free(walk.truths), free(walk.found);
    free(walk.candidates), free(walk.counts), free(walk.need);
    return failed ? -1 : 0;
}

int draw_curves(const Dataset *data, const Settings *settings, Curves *curves)
{
    return evaluate(data, settings, curves, NULL);
}

int find_takes(const Dataset *data, const Settings *settings, Takes *takes)
{
    return evaluate(data, settings, NULL, takes);
}
