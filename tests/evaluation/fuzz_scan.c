/* Feeds files to native/scan.c: whatever they hold, it must stay in bounds and come to an end.
 *
 * Each file is scanned in two ways, in the usual blocks and in reads of a few bytes; both must have
 * the same outcome. Built by fuzz_scan.py, with libFuzzer where there is one and with the plain
 * mutations below otherwise.
 */
#include "scan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *data;
    size_t size, at, step;
} Source;

static int64_t read_source(void *source, char *buffer, size_t size)
{
    Source *from = source;
    size_t rest = from->size - from->at;
    size = size < rest ? size : rest;
    size = size < from->step ? size : from->step;
    memcpy(buffer, from->data + from->at, size);
    from->at += size;
    return (int64_t)size;
}

static void require(bool condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static bool scan(const char *data, size_t size, size_t step, int count, ScanTable *tables)
{
    Source source = {data, size, 0, step};
    memset(tables, 0, 3 * sizeof *tables);
    int64_t hint = (int64_t)(size * (step % 3)); /* it may be wrong */
    return count == 1 ? scan_detections(read_source, &source, hint, tables)
                      : scan_truths(read_source, &source, hint, tables);
}

static void compare(const ScanTable *a, const ScanTable *b, const char *data)
{
    require(a->count == b->count && a->missing == b->missing, "other rows");
    require(a->start == b->start && a->end == b->end, "another place");
    require(data[a->start] == '[' && data[a->end - 1] == ']', "not the place of a list");
    for (int i = 0; a->fields && a->fields[i].key && a->count; i++)
        require(!memcmp(a->columns[i], b->columns[i], a->count * scan_cell(a->fields[i].kind)),
                "other cells");
}

static bool check(const char *data, size_t size, size_t step)
{
    bool any = false;
    for (int count = 1; count <= 3; count += 2) {
        ScanTable whole[3], parts[3];
        bool taken = scan(data, size, (size_t)-1, count, whole);
        require(taken == scan(data, size, step, count, parts), "another outcome");
        for (int i = 0; i < 3; i++) {
            if (taken && i < count)
                compare(&whole[i], &parts[i], data);
            scan_free(&whole[i]);
            scan_free(&parts[i]);
        }
        any |= taken;
    }
    return any;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* A copy of its own, so that no byte behind it is missed. */
    char *copy = malloc(size ? size : 1);
    memcpy(copy, data, size);
    check(copy, size, 1 + size % 7);
    free(copy);
    return 0;
}

#ifndef LIBFUZZER

static uint64_t random_state;

static size_t below(size_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return limit ? (size_t)(random_state % limit) : 0;
}

static const char *const TOKENS[] = {
    "{", "}", "[", "]", ",", ":", "\"", "\\", "-", ".", "e", "0", "1e308", "1e-9", "9223372036854775807",
    "123456789012345678901234567890", "0.1234567890123456789", "NaN", "Infinity", "true", "null",
    "\"id\"", "\"bbox\"", "\"score\"", "\"image_id\"", "\"annotations\"", "\"images\"", "\\u00e9",
    "\xc3\xa9", "\xed\xa0\x80", "\xf0\x9f\x98\x80", "[0,0,1,1]", "[[[[", "{\"a\":{\"b\":", "      ",
};

/* Changes a few places: a byte, a token put in, a part cut out or repeated. */
static size_t mutate(char *data, size_t size, size_t room)
{
    for (size_t changes = 1 + below(4); changes > 0; changes--) {
        size_t at = below(size), length = below(1 + below(40));
        const char *token = TOKENS[below(sizeof TOKENS / sizeof *TOKENS)];
        switch (below(5)) {
        case 0:
            if (size)
                data[at] = (char)below(256);
            break;
        case 1:
            if (size)
                data[at] ^= (char)(1 << below(8));
            break;
        case 2:
            length = strlen(token);
            if (size + length > room)
                break;
            memmove(data + at + length, data + at, size - at);
            memcpy(data + at, token, length);
            size += length;
            break;
        case 3:
            length = length < size - at ? length : size - at;
            memmove(data + at, data + at + length, size - at - length);
            size -= length;
            break;
        default:
            length = length < size - at ? length : size - at;
            if (size + length > room)
                break;
            memmove(data + at + length, data + at, size - at);
            size += length;
        }
    }
    return below(10) ? size : below(size + 1);
}

/* fuzz RUNS SEED FILE.. */
int main(int count, char **arguments)
{
    long runs = count > 3 ? atol(arguments[1]) : 0, taken = 0;
    random_state = 88172645463325252u + (count > 3 ? strtoull(arguments[2], NULL, 10) : 0);
    for (long run = 0; run < runs; run++) {
        FILE *file = fopen(arguments[3 + below((size_t)count - 3)], "rb");
        char data[8192];
        require(file, "a file is missing");
        size_t size = mutate(data, fread(data, 1, 4096, file), sizeof data);
        fclose(file);
        char *copy = malloc(size ? size : 1);
        memcpy(copy, data, size);
        taken += check(copy, size, 1 + below(9));
        free(copy);
    }
    printf("%ld files, %ld of them taken\n", runs, taken);
    return runs ? 0 : 2;
}

#endif
