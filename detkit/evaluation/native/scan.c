/* Reads COCO JSON into columns, a block of the file at a time.
 *
 * Only well-formed, ordinary files are taken. Whatever is odd (a mistake of syntax, a missing
 * field, text as an id, NaN, a key twice or with an escape, deep nesting, a record of many
 * megabytes) ends the scan: then Python's json module reads the file again, and takes it or names
 * what is wrong. So nothing here has to explain an error, and both ways agree because this one
 * never guesses.
 *
 * Functions on text take where to start and return where they ended, or NULL. The text ends with
 * zero bytes, at least SCAN_PADDING of them. Zero is part of no token, so that every loop over
 * characters stops at the end at the latest. A record that is cut off by the end of the block fails
 * as a wrong one does: it is tried again with more of the file, until there is no more.
 */
#define _DEFAULT_SOURCE /* madvise */
#include "scan.h"

#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "number.h"

#ifndef SCAN_BLOCK
#define SCAN_BLOCK (1 << 18) /* bytes read at once: they stay in the processor's cache */
#endif
#define SCAN_LONGEST (1 << 24) /* bytes of the longest record, or of another value of the file */
#define SCAN_PADDING 32 /* longer than every key and than what number.h loads at once */
#define SCAN_DEPTH 32 /* of lists and objects within each other */
#define KEY(name) "\"" name "\"", sizeof name + 1

/* ------------------------------------------------------------------ what is passed over */

static inline const char *space(const char *at)
{
    while (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')
        at++;
    return at;
}

static inline bool continues(char byte)
{
    return (byte & 0xC0) == 0x80;
}

/* A character of two to four bytes in UTF-8, in its shortest form and not a surrogate. */
static const char *wide_character(const char *at)
{
    unsigned char first = (unsigned char)at[0], second = (unsigned char)at[1];
    if (first < 0xC2 || first > 0xF4 || !continues(at[1]))
        return NULL;
    if (first < 0xE0)
        return at + 2;
    if (!continues(at[2]) || (first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F))
        return NULL;
    if (first < 0xF0)
        return at + 3;
    if (!continues(at[3]) || (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F))
        return NULL;
    return at + 4;
}

/* What may follow a backslash. */
static const char *escape(const char *at)
{
    if (*at != 'u')
        return *at && strchr("\"\\/bfnrt", *at) ? at + 1 : NULL;
    for (int i = 1; i <= 4; i++)
        if (!at[i] || !strchr("0123456789abcdefABCDEF", at[i]))
            return NULL;
    return at + 5;
}

/* Eight plain characters at `at`: no quote, backslash, control character or part of a wide one. */
static inline bool plain(const char *at)
{
    const uint64_t ones = 0x0101010101010101, tops = 0x8080808080808080;
    uint64_t word;
    memcpy(&word, at, 8);
    uint64_t quote = word ^ ones * '"', backslash = word ^ ones * '\\';
    /* Subtracting borrows from the top bit of each byte that is too small. */
    return !((word | (word - ones * ' ') | (quote - ones) | (backslash - ones)) & tops);
}

static const char *string(const char *at, bool escapes)
{
    if (*at++ != '"')
        return NULL;
    for (;;) {
        while (plain(at))
            at += 8;
        if (*at == '"')
            return at + 1;
        if (*at & 0x80)
            at = wide_character(at);
        else if (*at == '\\')
            at = escapes ? escape(at + 1) : NULL;
        else
            at = *at >= ' ' ? at + 1 : NULL;
        if (!at)
            return NULL;
    }
}

static const char *literal(const char *at, const char *word)
{
    size_t length = strlen(word);
    return memcmp(at, word, length) ? NULL : at + length;
}

/* The key of a member with its colon; keys with escapes are odd, as they may spell any other. */
static const char *any_key(const char *at)
{
    at = string(at, false);
    at = at ? space(at) : NULL;
    return at && *at == ':' ? space(at + 1) : NULL;
}

static const char *any_value(const char *at, int depth)
{
    Number number;
    switch (*at) {
    case '"':
        return string(at, true);
    case 't':
        return literal(at, "true");
    case 'f':
        return literal(at, "false");
    case 'n':
        return literal(at, "null");
    case '[':
    case '{':
        break;
    default:
        return number_read(at, &number);
    }
    char close = *at == '[' ? ']' : '}';
    at = depth < SCAN_DEPTH ? space(at + 1) : NULL;
    if (at && *at == close)
        return at + 1;
    while (at) {
        if (close == '}')
            at = any_key(at);
        at = at ? any_value(at, depth + 1) : NULL;
        at = at ? space(at) : NULL;
        if (at && *at == close)
            return at + 1;
        at = at && *at == ',' ? space(at + 1) : NULL;
    }
    return NULL;
}

/* ------------------------------------------------------------------ what is kept */

static inline const char *take_integer(const char *at, int64_t *cell)
{
    Number number;
    const char *end = number_read(at, &number);
    if (!end || !number.whole || !number_fits(&number, at) || number.mantissa > INT64_MAX)
        return NULL;
    *cell = number.negative ? -(int64_t)number.mantissa : (int64_t)number.mantissa;
    return end;
}

static inline const char *take_number(const char *at, double *cell)
{
    Number number;
    const char *end = number_read(at, &number);
    return end && number_value(&number, at, cell) ? end : NULL;
}

static const char *take_box(const char *at, double cell[4])
{
    char before = '[';
    for (int i = 0; i < 4; i++, before = ',') {
        if (*at != before)
            return NULL;
        at = take_number(space(at + 1), &cell[i]);
        if (!at)
            return NULL;
        at = space(at);
    }
    return *at == ']' ? at + 1 : NULL;
}

static const char *take_flag(const char *at, char *cell)
{
    int64_t value;
    *cell = *at == '1' || *at == 't';
    if (*at == 't' || *at == 'f')
        return literal(at, *cell ? "true" : "false");
    at = take_integer(at, &value);
    return at && (value == 0 || value == 1) ? at : NULL;
}

size_t scan_cell(ScanKind kind)
{
    return kind == SCAN_BOX ? 4 * sizeof(double) : kind == SCAN_FLAG ? 1 : 8;
}

static const char *take_value(const char *at, ScanKind kind, char *cell)
{
    switch (kind) {
    case SCAN_INTEGER:
        return take_integer(at, (int64_t *)cell);
    case SCAN_NUMBER:
        return take_number(at, (double *)cell);
    case SCAN_BOX:
        return take_box(at, (double *)cell);
    default:
        return take_flag(at, cell);
    }
}

/* The field whose key stands here, or -1. Records look alike: try the one behind the last first. */
static inline int find_field(const char *at, const ScanField *fields, int guess)
{
    if (fields[guess].key && !memcmp(at, fields[guess].key, fields[guess].length))
        return guess;
    for (int i = 0; fields[i].key; i++)
        if (!memcmp(at, fields[i].key, fields[i].length))
            return i;
    return -1;
}

/* Fills in what the record lacks; false where that must not be. */
static bool complete(ScanTable *table, unsigned seen)
{
    for (int i = 0; table->fields[i].key; i++) {
        if (seen >> i & 1)
            continue;
        ScanKind kind = table->fields[i].kind;
        size_t size = scan_cell(kind);
        if (!table->fields[i].optional)
            return false;
        /* All bits set are NaN, which no file gives. */
        memset(table->columns[i] + table->count * size, kind == SCAN_NUMBER ? 0xFF : 0, size);
        table->missing |= 1u << i;
    }
    return true;
}

/* An object, into row `count` of the table. */
static const char *take_record(const char *at, ScanTable *table)
{
    unsigned seen = 0;
    int field = -1;
    if (*at != '{')
        return NULL;
    do {
        at = space(at + 1);
        int found = find_field(at, table->fields, field + 1);
        if (found < 0) {
            at = any_key(at);
            at = at ? any_value(at, 0) : NULL;
        } else {
            at = space(at + table->fields[found].length);
            if (*at != ':' || seen >> found & 1)
                return NULL;
            field = found;
            seen |= 1u << field;
            ScanKind kind = table->fields[field].kind;
            char *cell = table->columns[field] + table->count * scan_cell(kind);
            at = take_value(space(at + 1), kind, cell);
        }
        at = at ? space(at) : ""; /* neither a comma nor a bracket */
    } while (*at == ',');
    return *at == '}' && complete(table, seen) ? at + 1 : NULL;
}

/* A column is written from one end to the other; to get many small pages takes much longer. */
static void ask_for_large_pages(char *column, size_t size)
{
#ifdef MADV_HUGEPAGE
    const uintptr_t page = 4096, start = ((uintptr_t)column + page - 1) / page * page;
    if (size >= 1 << 21)
        madvise((void *)start, size - page, MADV_HUGEPAGE);
#else
    (void)column, (void)size;
#endif
}

/* Makes room for more rows: for half as many again, and for as many as the rest of the file would
 * hold if they were as long as those before. What is never written takes no memory. */
static bool grow(ScanTable *table, int64_t scanned, int64_t rest)
{
    double others = 0;
    if (table->count && rest > 0)
        others = (double)table->count * (double)rest / (double)(scanned - table->start);
    if (others > (double)(SIZE_MAX / 64))
        return false;
    size_t rows = table->count + table->count / 2 + 1024 + (size_t)others;
    for (int i = 0; table->fields[i].key; i++) {
        size_t size = rows * scan_cell(table->fields[i].kind);
        char *column = realloc(table->columns[i], size);
        if (!column)
            return false;
        ask_for_large_pages(column, size);
        table->columns[i] = column;
    }
    table->capacity = rows;
    return true;
}

void scan_free(ScanTable *table)
{
    for (int i = 0; i < SCAN_FIELDS; i++) {
        free(table->columns[i]);
        table->columns[i] = NULL;
    }
}

/* ------------------------------------------------------------------ the file, block by block */

typedef struct {
    ScanRead read;
    void *source;
    int64_t size; /* of the file; a hint */
    char *buffer; /* capacity + SCAN_PADDING bytes */
    size_t capacity;
    const char *at, *end;
    int64_t offset; /* of the buffer in the file */
    bool ended, failed;
} Scanner;

static int64_t position(const Scanner *scanner)
{
    return scanner->offset + (scanner->at - scanner->buffer);
}

/* Gets more of the file behind what is left from `at` on; false where there is no more to get. */
static bool more(Scanner *scanner)
{
    size_t rest = (size_t)(scanner->end - scanner->at);
    if (scanner->ended)
        return false;
    scanner->offset += scanner->at - scanner->buffer;
    memmove(scanner->buffer, scanner->at, rest);
    if (rest == scanner->capacity) {
        char *buffer = NULL;
        if (rest < SCAN_LONGEST)
            buffer = realloc(scanner->buffer, 2 * rest + SCAN_PADDING);
        if (!buffer)
            return false;
        scanner->buffer = buffer;
        scanner->capacity = 2 * rest;
    }
    int64_t got = scanner->read(scanner->source, scanner->buffer + rest, scanner->capacity - rest);
    scanner->ended = got <= 0;
    scanner->failed = got < 0;
    scanner->at = scanner->buffer;
    scanner->end = scanner->buffer + rest + (got > 0 ? got : 0);
    memset(scanner->buffer + (scanner->end - scanner->buffer), 0, SCAN_PADDING);
    return true;
}

/* Moves to the next character that is not blank and returns it; 0 at the end of the file. */
static char next_symbol(Scanner *scanner)
{
    do
        scanner->at = space(scanner->at);
    while (scanner->at == scanner->end && more(scanner));
    return *scanner->at;
}

static bool take_symbol(Scanner *scanner, char symbol)
{
    bool found = next_symbol(scanner) == symbol;
    scanner->at += found;
    return found;
}

typedef const char *(*Take)(const char *at, ScanTable *table);

static const char *take_key(const char *at, ScanTable *table)
{
    (void)table;
    return any_key(at);
}

static const char *take_any(const char *at, ScanTable *table)
{
    (void)table;
    return any_value(at, 0);
}

/* Gets all of what starts at the next symbol into the buffer; returns its end, or NULL. */
static const char *take_whole(Scanner *scanner, Take take, ScanTable *table)
{
    next_symbol(scanner);
    do {
        const char *end = take(scanner->at, table);
        /* A number that touches the end of the buffer may go on behind it. */
        if (end && (end < scanner->end || scanner->ended))
            return end;
    } while (more(scanner));
    return NULL;
}

static bool take_list(Scanner *scanner, ScanTable *table)
{
    Take take = table->fields ? take_record : take_any;
    if (!take_symbol(scanner, '['))
        return false;
    table->start = position(scanner) - 1;
    bool ended = take_symbol(scanner, ']');
    for (; !ended; table->count++) {
        if (table->fields && table->count == table->capacity &&
            !grow(table, position(scanner), scanner->size - position(scanner)))
            return false;
        const char *end = take_whole(scanner, take, table);
        if (!end)
            return false;
        scanner->at = end;
        ended = take_symbol(scanner, ']');
        if (!ended && !take_symbol(scanner, ','))
            return false;
    }
    table->end = position(scanner);
    return true;
}

/* A member of the file's object: a list that is wanted, another one, or any value. */
static bool take_member(Scanner *scanner, ScanTable *tables, int count)
{
    ScanTable other = {0}, *table = &other;
    const char *end = take_whole(scanner, take_key, NULL);
    if (!end)
        return false;
    for (int i = 0; i < count; i++)
        if (literal(scanner->at, tables[i].key))
            table = &tables[i];
    scanner->at = end;
    if (table != &other && table->end)
        return false;
    if (table != &other || next_symbol(scanner) == '[')
        return take_list(scanner, table);
    scanner->at = end = take_whole(scanner, take_any, NULL);
    return end;
}

static bool take_object(Scanner *scanner, ScanTable *tables, int count)
{
    if (!take_symbol(scanner, '{'))
        return false;
    do {
        if (!take_member(scanner, tables, count))
            return false;
    } while (take_symbol(scanner, ','));
    return take_symbol(scanner, '}');
}

/* ------------------------------------------------------------------ the two kinds of files */

static bool scan(ScanRead read, void *source, int64_t size, ScanTable *tables, int count)
{
    Scanner scanner = {.read = read, .source = source, .size = size, .capacity = SCAN_BLOCK};
    scanner.buffer = calloc(1, SCAN_BLOCK + SCAN_PADDING);
    if (!scanner.buffer)
        return false;
    scanner.at = scanner.end = scanner.buffer;
    bool taken = tables->key ? take_object(&scanner, tables, count) : take_list(&scanner, tables);
    taken = taken && next_symbol(&scanner) == 0 && scanner.at == scanner.end && !scanner.failed;
    free(scanner.buffer);
    for (int i = 0; i < count; i++)
        taken = taken && tables[i].end; /* the list is there */
    return taken;
}

bool scan_detections(ScanRead read, void *source, int64_t size, ScanTable *table)
{
    static const ScanField fields[] = {
        {KEY("image_id"), SCAN_INTEGER, false},
        {KEY("category_id"), SCAN_INTEGER, false},
        {KEY("bbox"), SCAN_BOX, false},
        {KEY("score"), SCAN_NUMBER, false},
        {0},
    };
    *table = (ScanTable){.fields = fields};
    return scan(read, source, size, table, 1);
}

bool scan_truths(ScanRead read, void *source, int64_t size, ScanTable tables[3])
{
    static const ScanField images[] = {{KEY("id"), SCAN_INTEGER, false}, {0}};
    static const ScanField annotations[] = {
        {KEY("id"), SCAN_INTEGER, true},
        {KEY("image_id"), SCAN_INTEGER, false},
        {KEY("category_id"), SCAN_INTEGER, false},
        {KEY("bbox"), SCAN_BOX, false},
        {KEY("area"), SCAN_NUMBER, true},
        {KEY("iscrowd"), SCAN_FLAG, true},
        {0},
    };
    tables[0] = (ScanTable){.key = "\"images\"", .fields = images};
    tables[1] = (ScanTable){.key = "\"categories\""};
    tables[2] = (ScanTable){.key = "\"annotations\"", .fields = annotations};
    return scan(read, source, size, tables, 3);
}
