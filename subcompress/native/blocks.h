/* Operators 1 and 2 on one kind of processor: included by native.c for each.

   LANES: floats a vector, LOG2_LANES; PATH(name): the names of what is defined here; STREAM(place, floats): a store
   past the caches; JOIN(place, step): as many 128-bit lanes as a vector has, each `step` bytes after the one before;
   OF_SHORTS, OF_BYTES(place): as many 16-bit or 8-bit integers, as floats; SHUFFLES: whether AVX2 is
   there. */

typedef float PATH(floats) __attribute__((vector_size(4 * LANES), may_alias));
typedef float PATH(free_floats) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t PATH(ints) __attribute__((vector_size(4 * LANES)));
typedef int16_t PATH(free_shorts) __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef int8_t PATH(free_bytes) __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef int8_t PATH(bytes) __attribute__((vector_size(16), may_alias));
#define floats PATH(floats)
#define free_floats PATH(free_floats)
#define ints PATH(ints)
#define free_shorts PATH(free_shorts)
#define free_bytes PATH(free_bytes)
#define bytes PATH(bytes)

/* ---- seeded starts ---- */

/* Rows of blocks [first, last) of the operator without coordinates: sums of 63 signs, in blocks of 64 rows. They fit
   bytes, and so do all sums on the way. With AVX2 signs go to their columns by shuffles, and the transform follows;
   elsewhere a table has the rows that each four signs make. */
APART void PATH(seeded)(const blocks_t *op, int64_t first, int64_t last, int8_t *rows) {
    uint32_t words[SEEDED_ROWS / 32 + 8];
    philox(op, first / 2, (last + 1) / 2, words);
    const uint32_t *w = words + first % 2 * 2;
    for (int64_t b = first; b < last; b++, w += 2, rows += 64) {
#if SHUFFLES
        __m256i bits = _mm256_set1_epi64x((int64_t)((uint64_t)w[1] << 32 | w[0]));
        __m256i x[2];
        for (int h = 0; h < 2; h++) {
            __m256i from = _mm256_loadu_si256((const __m256i *)(op->signs + 32 * h));
            __m256i mask = _mm256_loadu_si256((const __m256i *)(op->signs + 64 + 32 * h));
            __m256i one = _mm256_loadu_si256((const __m256i *)(op->signs + 128 + 32 * h));
            __m256i minus = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(bits, from), mask), mask);
            x[h] = _mm256_sign_epi8(one, _mm256_or_si256(minus, _mm256_set1_epi8(1)));
        }
        __m256i a = x[0], c = x[1], s, d;
        for (int round = 0; round < 5; round++) { /* each bit of the row number in turn tells the vectors apart */
            s = _mm256_add_epi8(a, c), d = _mm256_sub_epi8(a, c);
            a = _mm256_unpacklo_epi8(s, d), c = _mm256_unpackhi_epi8(s, d);
        }
        s = _mm256_permute2x128_si256(a, c, 0x20), d = _mm256_permute2x128_si256(a, c, 0x31);
        a = _mm256_add_epi8(s, d), c = _mm256_sub_epi8(s, d);
        _mm256_storeu_si256((__m256i *)rows, _mm256_permute2x128_si256(a, c, 0x20));
        _mm256_storeu_si256((__m256i *)(rows + 32), _mm256_permute2x128_si256(a, c, 0x31));
#else
        bytes sum[4] = {{0}, {0}, {0}, {0}};
#pragma GCC unroll 16
        for (int k = 0; k < 16; k++) {
            const bytes *of = (const bytes *)(op->sums + 64 * (16 * k + (w[k / 8] >> (4 * (k % 8)) & 15)));
            for (int i = 0; i < 4; i++) sum[i] += of[i];
        }
        for (int i = 0; i < 4; i++) ((bytes *)rows)[i] = sum[i];
#endif
    }
}

/* ---- exact rows in 16-bit integers, others in floats ---- */

#define E float
#define I int32_t
#define N LANES
#define LOG2_N LOG2_LANES
#define T(name) PATH(name##_float)
#define NEAR 13
#define FLOATS 1
#include "tile.h"

#define E int16_t
#define I int16_t
#define N (2 * LANES)
#define LOG2_N (LOG2_LANES + 1)
#define T(name) PATH(name##_short)
#define NEAR 14
#define FLOATS 0
#include "tile.h"

/* The operator of seeded starts itself: its rows are added to numbers that are zero. */
INLINE void PATH(fill_seeded)(const blocks_t *op, const segment_t *segments, int64_t n, int64_t first, int64_t last,
                              int far) {
    int16_t zeros[SEEDED_ROWS];
    memset(zeros, 0, sizeof zeros);
    for (int64_t i = 0; i < n; i++) {
        segment_t s = segments[i];
        s.seeded = op, s.seeded_row = s.lo, s.unit = s.scale, s.scale = 0;
        int64_t lo = s.lo / 64 > first ? s.lo / 64 : first, hi = (s.hi + 63) / 64 < last ? (s.hi + 63) / 64 : last;
        for (int64_t row = 64 * lo; row < 64 * hi; row += SEEDED_ROWS) {
            int64_t rows = 64 * hi - row < SEEDED_ROWS ? 64 * hi - row : SEEDED_ROWS;
            PATH(write_short)(&s, row, rows, zeros, far);
        }
    }
}

static void PATH(fill)(const blocks_t *op, const void *c, int short_numbers, float frozen, const segment_t *segments,
                       int64_t n, int64_t first, int64_t last, int far, float *scratch) {
    if (op->sums) PATH(fill_seeded)(op, segments, n, first, last, far);
    else if (short_numbers) PATH(fill_short)(op, c, (int16_t)frozen, segments, n, first, last, far, scratch);
    else PATH(fill_float)(op, c, frozen, segments, n, first, last, far, scratch);
}

/* ---- the adjoint ---- */

/* Columns back to their slots. */
INLINE void PATH(collect)(const blocks_t *op, const float *restrict block, float *restrict slots) {
    int64_t n = op->K + op->used;
    if (op->slots)
        for (int64_t j = 0; j < n; j++) slots[op->slots[j]] = block[op->columns[j]];
    else
        for (int64_t j = 0; j < n; j++) slots[j] = block[op->near[j]];
}

static void PATH(adjoint)(const blocks_t *op, const segment_t *segments, int64_t n, int64_t first, int64_t last,
                          float *sums, float *scratch) {
    int64_t m = (int64_t)1 << op->log2_m, tile = m < TILE ? TILE : m, group = tile_of(op);
    int64_t K = op->K, used = op->used, free_slots = m - K, at = 0;
    uint32_t *words = (uint32_t *)scratch;
    float *x = scratch + words_of(op), *slots = x + tile;
    for (int64_t b = first; b < last; b += group) {
        int64_t count = last - b < group ? last - b : group, rows = count * m, lo = b * m, filled = 0;
        while (at < n && segments[at].hi <= lo) at++;
        if (at == n) break;
        if (segments[at].lo >= lo + rows) continue;
        for (int64_t s = at; s < n && segments[s].lo < lo + rows; s++) {
            int64_t from = segments[s].lo > lo ? segments[s].lo : lo;
            int64_t to = segments[s].hi < lo + rows ? segments[s].hi : lo + rows;
            const float *g = (const float *)segments[s].data + (from - segments[s].lo);
            float scale = segments[s].scale;
            memset(x + filled, 0, sizeof(float) * (size_t)(from - lo - filled));
            for (int64_t i = 0; i < to - from; i++) x[from - lo + i] = scale * g[i];
            filled = to - lo;
        }
        memset(x + filled, 0, sizeof(float) * (size_t)(rows - filled));
        int64_t bit = signs(op, b, count, words);
        PATH(transform_float)(x, rows, op->log2_m);
        for (int64_t i = 0; i < count; i++) {
            int64_t read = op->d > free_slots ? (b + i) * free_slots % op->d : 0;
            int64_t head = op->d - read < used ? op->d - read : used;
            PATH(collect)(op, x + i * m, slots);
            PATH(flip_float)(slots, K + used, words, bit + i * m);
            for (int64_t j = 0; j < head; j++) sums[read + j] += slots[K + j];
            for (int64_t j = head; j < used; j++) sums[j - head] += slots[K + j];
        }
    }
}

#undef floats
#undef free_floats
#undef ints
#undef free_shorts
#undef free_bytes
#undef bytes
#undef PATH
#undef LANES
#undef LOG2_LANES
#undef STREAM
#undef SHUFFLES
#undef JOIN
#undef OF_SHORTS
#undef OF_BYTES
