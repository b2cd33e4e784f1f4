/* Decimal numbers as JSON writes them, to doubles, rounded as Python's float() rounds them.
 *
 * The text must be followed by 8 zero bytes at least: zero is no digit, so that every loop ends
 * there, and 8 bytes can be loaded at once wherever a number may stand.
 */
#ifndef DETKIT_NUMBER_H
#define DETKIT_NUMBER_H

#include <float.h>
#include <locale.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0
#error "intermediate results are wider than double, so that the last bits would differ"
#endif

#if defined(__GNUC__) && defined(__SIZEOF_INT128__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NUMBER_WIDE 1 /* 8 digits are taken at once, and 128 bits are divided by 64 */
#else
#define NUMBER_WIDE 0
#endif

#define NUMBER_LONGEST 400 /* Python refuses whole numbers of more than 640 digits, or of 4300 */
#define NUMBER_FIVES 28
#define NUMBER_TENS 23

static const uint64_t NUMBER_FIVE[NUMBER_FIVES] = { /* all powers below 2^63 */
    1, 5, 25, 125, 625, 3125, 15625, 78125, 390625, 1953125, 9765625, 48828125, 244140625,
    1220703125, 6103515625, 30517578125, 152587890625, 762939453125, 3814697265625, 19073486328125,
    95367431640625, 476837158203125, 2384185791015625, 11920928955078125, 59604644775390625,
    298023223876953125, 1490116119384765625, 7450580596923828125,
};
static const double NUMBER_TEN[NUMBER_TENS] = { /* all powers that are doubles */
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11,
    1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
};

/* What is written: mantissa * 10^exponent. */
typedef struct {
    uint64_t mantissa; /* modulo 2^64 */
    int exponent;
    int digits; /* of the mantissa, zeros in front included */
    bool negative;
    bool whole; /* written without a point and an exponent */
} Number;

/* Appends a run of digits to a value (modulo 2^64) and returns the end of the run. */
#if NUMBER_WIDE
static inline const char *number_digits(const char *at, uint64_t *value)
{
    static const uint32_t TEN[] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000};
    for (;;) {
        uint64_t word;
        memcpy(&word, at, 8);
        word ^= 0x3030303030303030; /* a digit becomes 0 .. 9 */
        /* The top bit of the first byte that is no digit; bytes behind it may be wrong. */
        uint64_t other = ((word + 0x7676767676767676) | word) & 0x8080808080808080;
        int count = other ? __builtin_ctzll(other) / 8 : 8;
        if (count == 0)
            return at;
        word <<= 64 - 8 * count; /* the digits stand at the end now, behind zeros */
        word = word * 10 + (word >> 8); /* every second byte is a pair of digits */
        word = ((word & 0x000000FF000000FF) * (100 + (UINT64_C(1000000) << 32)) +
                (word >> 16 & 0x000000FF000000FF) * (1 + (UINT64_C(10000) << 32))) >> 32;
        *value = *value * TEN[count] + word;
        at += count;
        if (count < 8)
            return at;
    }
}
#else
static inline const char *number_digits(const char *at, uint64_t *value)
{
    for (; *at >= '0' && *at <= '9'; at++)
        *value = *value * 10 + (uint64_t)(*at - '0');
    return at;
}
#endif

/* Reads what follows an e; returns its end, or NULL where that is no exponent or a huge one. */
static inline const char *number_exponent(const char *at, int *exponent)
{
    bool negative = *at == '-';
    if (*at == '-' || *at == '+')
        at++;
    uint64_t value = 0;
    const char *end = number_digits(at, &value);
    if (end == at || end - at > 4)
        return NULL;
    *exponent += negative ? -(int)value : (int)value;
    return end;
}

/* Reads a number in JSON's grammar; returns its end, or NULL where there is none or a huge one. */
static inline const char *number_read(const char *at, Number *number)
{
    *number = (Number){.negative = *at == '-', .whole = true};
    at += number->negative;
    const char *end = number_digits(at, &number->mantissa);
    if (end == at || (*at == '0' && end - at > 1) || end - at > NUMBER_LONGEST)
        return NULL;
    number->digits = (int)(end - at);
    if (*end == '.') {
        at = end + 1;
        end = number_digits(at, &number->mantissa);
        if (end == at || end - at > NUMBER_LONGEST)
            return NULL;
        number->exponent = -(int)(end - at);
        number->digits += (int)(end - at);
        number->whole = false;
    }
    if (*end == 'e' || *end == 'E') {
        end = number_exponent(end + 1, &number->exponent);
        number->whole = false;
    }
    return end;
}

/* Whether the mantissa is exact: up to 19 digits fit, and zeros in front do not count. */
static inline bool number_fits(const Number *number, const char *text)
{
    int digits = number->digits;
    if (digits > 19)
        for (text += number->negative; *text == '0' || *text == '.'; text++)
            digits -= *text == '0';
    return digits <= 19;
}

#if NUMBER_WIDE
/* mantissa / 10^power, rounded once, for a mantissa above 0 and a power of 1 .. 27.
 *
 * Dividend and divisor are shifted until their top bits are set. The quotient then has at least 63
 * bits, far more than the 53 that a double keeps, and its last bit also notes that a remainder is
 * left. So its conversion to double rounds as that of the true quotient would. */
static inline double number_divide(uint64_t mantissa, int power)
{
    int up = __builtin_clzll(mantissa), down = __builtin_clzll(NUMBER_FIVE[power]);
    uint64_t divisor = NUMBER_FIVE[power] << down;
    unsigned __int128 dividend = (unsigned __int128)(mantissa << up) << 63;
    uint64_t quotient = (uint64_t)(dividend / divisor);
    quotient |= (uint64_t)dividend != quotient * divisor;
    uint64_t bits = (uint64_t)(1023 + down - up - 63 - power) << 52;
    double scale; /* 2^(down - up - 63 - power) */
    memcpy(&scale, &bits, 8);
    return (double)quotient * scale;
}
#endif

/* The value of what number_read took from `text`; false where it is too large or cannot be had. */
static inline bool number_value(const Number *number, const char *text, double *value)
{
    uint64_t mantissa = number->mantissa;
    int exponent = number->exponent;
    bool fits = number_fits(number, text);
    if (fits && number->whole) {
        *value = number->negative && mantissa ? -(double)mantissa : (double)mantissa;
        return true; /* -0 is 0: in Python a whole number has no zero with a sign */
    }
    if (fits && mantissa <= UINT64_C(1) << 53 && exponent < NUMBER_TENS && -exponent < NUMBER_TENS)
        /* Both are doubles, so that the one operation rounds once (Clinger 1990). */
        *value = exponent < 0 ? (double)mantissa / NUMBER_TEN[-exponent]
                              : (double)mantissa * NUMBER_TEN[exponent];
#if NUMBER_WIDE
    else if (fits && mantissa && exponent < 0 && -exponent < NUMBER_FIVES)
        *value = number_divide(mantissa, -exponent);
#endif
    else {
        *value = strtod(text + number->negative, NULL);
        /* Where a locale has another point, strtod stops in front of it. */
        if (localeconv()->decimal_point[0] != '.')
            return false;
    }
    if (number->negative)
        *value = -*value;
    return isfinite(*value);
}

#endif
