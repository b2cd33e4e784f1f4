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

/* A list of records by columns, each with `count` cells; or only where a list stands in the file. */
typedef struct {
    const char *key; /* of the list in the file's object, with its quotes */
    const ScanField *fields; /* those that are kept; ends with a key that is NULL */
    char *columns[SCAN_FIELDS];
    size_t count, capacity;
    unsigned missing; /* a bit for each optional field that some record lacks */
    int64_t start, end; /* bytes in the file, brackets included; 0 where the list is missing */
} ScanTable;

/* Puts up to `size` bytes into `buffer`; returns how many, 0 at the end, less after an error. */
typedef int64_t (*ScanRead)(void *source, char *buffer, size_t size);

/* int64, double, four doubles or one byte. */
size_t scan_cell(ScanKind kind);

/* Both return false for all that is out of the ordinary: wrong, unusual, unreadable, too large. In
 * either case scan_free releases the columns. */
bool scan_detections(ScanRead read, void *source, int64_t size, ScanTable *table);
bool scan_truths(ScanRead read, void *source, int64_t size, ScanTable tables[3]); /* images, categories, annotations */
void scan_free(ScanTable *table);

#endif
