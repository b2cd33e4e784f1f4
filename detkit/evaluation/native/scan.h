/* COCO JSON, ground truth and results, into columns: see scan.c. */
#ifndef DETKIT_SCAN_H
#define DETKIT_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SCAN_FIELDS 6

typedef enum { SCAN_INTEGER, SCAN_NUMBER, SCAN_BOX, SCAN_FLAG } ScanKind;

typedef struct {
    const char *key; /* with its quotes */
    size_t length; /* of the key */
    ScanKind kind;
    bool optional;
} ScanField;

/* A list of the file: its records by columns of `count` cells, or only where it stands. */
typedef struct {
    const char *key; /* of the list in the file's object, with its quotes */
    const ScanField *fields; /* up to one whose key is NULL; NULL: no columns */
    char *columns[SCAN_FIELDS];
    size_t count, capacity;
    unsigned missing; /* a bit for each optional field that some record lacks */
    int64_t start, end; /* the bytes of the list in the file, brackets included */
} ScanTable;

/* Puts up to `size` bytes into `buffer`; returns how many, 0 at the end, less after an error. */
typedef int64_t (*ScanRead)(void *source, char *buffer, size_t size);

/* Bytes of a cell: an int64, a double, four doubles or a byte that is 0 or 1. */
size_t scan_cell(ScanKind kind);

/* Fill a table with detections, or three with images, categories (no columns) and annotations. The
 * size of the file is a hint. False means that something is out of the ordinary, wrong, unreadable
 * or too large. In either case scan_free releases the columns. */
bool scan_detections(ScanRead read, void *source, int64_t size, ScanTable *table);
bool scan_truths(ScanRead read, void *source, int64_t size, ScanTable tables[3]);
void scan_free(ScanTable *table);

#endif
