/* The decoder of coordinates (docs/FORMAT.md, section 7), as in subcompress/format/codec.py, a thousand times faster. */

#include <stdint.h>

#define MAX_BITS 12

typedef struct {
    const uint8_t *data;
    int64_t size, at;
    uint64_t range, code;
    int64_t left; /* decisions that nonzero coordinates may still take beside their first */
} decoder_t;

typedef uint64_t context_t[2]; /* half-counts of zeros and ones */

static int next_bit(decoder_t *coder, context_t context) {
    uint64_t p = (context[0] << 16) / (context[0] + context[1]);
    p = p < 1 ? 1 : p > 65535 ? 65535 : p;
    uint64_t bound = coder->range * p >> 16;
    int value = coder->code >= bound;
    if (value) {
        coder->code -= bound;
        coder->range -= bound;
    } else
        coder->range = bound;
    context[value] += 2;
    while (coder->range < 1 << 24) {
        coder->range <<= 8;
        coder->code = coder->code << 8 | (coder->at < coder->size ? coder->data[coder->at] : 0);
        coder->at++;
    }
    return value;
}

/* The next d coordinates of `bits` bits, 2 to 12; those after `left` fell below zero are not read. */
void subcompress_decode(decoder_t *coder, int32_t bits, int64_t d, int32_t *out) {
    context_t zero = {1, 1}, sign = {1, 1}, classes[MAX_BITS], mantissa[MAX_BITS][4];
    for (int k = 0; k < MAX_BITS; k++) {
        classes[k][0] = classes[k][1] = 1;
        for (int m = 0; m < 4; m++) mantissa[k][m][0] = mantissa[k][m][1] = 1;
    }
    for (int64_t j = 0; j < d && coder->left >= 0; j++) {
        if (!next_bit(coder, zero)) {
            out[j] = 0;
            continue;
        }
        int negative = next_bit(coder, sign), last = negative ? bits - 1 : bits - 2, k = 0;
        while (k < last && next_bit(coder, classes[k])) k++;
        int32_t magnitude = 1;
        if (k == bits - 1)
            magnitude <<= k;
        else
            for (int i = 0; i < k; i++) {
                context_t even = {1, 1};
                magnitude = magnitude << 1 | next_bit(coder, magnitude < 4 ? mantissa[k][magnitude] : even);
            }
        out[j] = negative ? -magnitude : magnitude;
        coder->left -= 1 + (k < last ? k + 1 : last) + (k == bits - 1 ? 0 : k);
    }
}
