/* Operators 1 and 2 (signed Hadamard blocks, docs/FORMAT.md, sections 8 to 10) on a CPU, one thread a call.

   Exact rows are sums below 2^16 in size: in 16-bit integers where they fit, else in float32, which holds them in any
   order of additions. With the numbers of a training the same float32 additions are sums as good as any. Blocks are
   handled in tiles that stay in the first cache: signs from Philox, slots strewn over their columns, the transform in
   place, weights written once.

   Everything is compiled once for each kind of processor (blocks.h), and callers say which they want. Plain C without
   Python's headers, called through ctypes; where no compiler was at hand the package works without. */

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#ifndef __GNUC__
#error "GCC or clang: vectors, and code for several kinds of processor in one file"
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "little-endian: signs are read as bytes"
#endif

#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline)) /* for the sake of the compiler's time */

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(mask, x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#define SHUFFLE2(mask, x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(mask, x, ...) __builtin_shuffle(x, (mask){__VA_ARGS__})
#define SHUFFLE2(mask, x, y, ...) __builtin_shuffle(x, y, (mask){__VA_ARGS__})
#endif
#define CONVERT(x, type) __builtin_convertvector(x, type)

#define EIGHT_OF(f, i, k) \
    f(i, k), f(i + 1, k), f(i + 2, k), f(i + 3, k), f(i + 4, k), f(i + 5, k), f(i + 6, k), f(i + 7, k)
#define SELF(i, k) (i)

#define PAIR(type, a, b) do { type t_ = a + b; b = a - b; a = t_; } while (0)
#define EIGHT(type, v)                                                                                         \
    PAIR(type, v[0], v[1]); PAIR(type, v[2], v[3]); PAIR(type, v[4], v[5]); PAIR(type, v[6], v[7]);            \
    PAIR(type, v[0], v[2]); PAIR(type, v[1], v[3]); PAIR(type, v[4], v[6]); PAIR(type, v[5], v[7]);            \
    PAIR(type, v[0], v[4]); PAIR(type, v[1], v[5]); PAIR(type, v[2], v[6]); PAIR(type, v[3], v[7])

/* A tile: rows that are transformed together, several blocks where those are small. */
#define TILE 1024

/* Blocks of more than 2^n rows outgrow the first cache: their slots go to their columns in the order of these. */
#define LOG2_NEAR 13

/* Blocks of fewer rows are not bundled, nor are so few blocks (tile.h). */
#define BUNDLED 32
#define FEW 3

/* Rows of seeded starts at a time. */
#define SEEDED_ROWS 1024

enum { F32, F16, BF16, F64 };

typedef struct {
    uint32_t key[2], stream;
    int32_t log2_m, K, used;
    int64_t d;
    const uint16_t *near;   /* the column of each slot, frozen ones first: K + used; null in blocks beyond LOG2_NEAR */
    const int32_t *columns; /* there: the columns, ascending, */
    const int32_t *slots;   /* and their slots */
    /* Of the operator of seeded starts, which has 63 frozen slots and blocks of 64 rows. For each column: the byte of
       the block's signs that its own is in, the bit in that byte, and 1, or 0 in the column without a slot. */
    const uint8_t *signs;
    /* For each four of its slots, and each 16 signs that these may have, the rows that they alone make; 16-byte
       aligned. */
    const int8_t *sums;
} blocks_t;

/* Rows [lo, hi) of the group: data = start + scale * row, start one for all or one a row, or data as an input. With
   `seeded`, that operator's row seeded_row + i, times `unit`, is added to the start of row lo + i. */
typedef struct {
    int64_t lo, hi;
    void *data;
    const float *starts;
    const blocks_t *seeded;
    int64_t seeded_row;
    float start, scale, unit;
    int32_t dtype;
} segment_t;

/* Words [32-bit] 4 first .. 4 last - 1 of the stream (Salmon et al. 2011, Philox4x32-10). */
INLINE void philox(const blocks_t *op, int64_t first, int64_t last, uint32_t *words) {
    for (int64_t q = first; q < last; q++) {
        uint32_t c0 = (uint32_t)q, c1 = (uint32_t)((uint64_t)q >> 32), c2 = op->stream, c3 = 0;
        uint32_t k0 = op->key[0], k1 = op->key[1];
        for (int round = 0; round < 10; round++) {
            uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
            c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
            c1 = (uint32_t)p1;
            c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
            c3 = (uint32_t)p0;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
        words += 4;
    }
}

/* IEEE 754 binary16, to nearest even. */
INLINE uint16_t half(float theta) {
    uint32_t bits, f;
    memcpy(&bits, &theta, 4);
    f = bits & 0x7FFFFFFFu;
    uint32_t normal = (f - 0x38000000u + 0xFFFu + (f >> 13 & 1)) >> 13;
    float small;
    memcpy(&small, &f, 4);
    small += 0.5f; /* one unit in its last place is the smallest binary16 */
    uint32_t tiny;
    memcpy(&tiny, &small, 4);
    uint32_t rounded = f < 0x38800000u ? tiny - 0x3F000000u : f < 0x47800000u ? normal : 0x7C00u;
    return (uint16_t)(rounded | (bits >> 16 & 0x8000u));
}

INLINE uint16_t brain(float theta) {
    uint32_t bits;
    memcpy(&bits, &theta, 4);
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

INLINE int64_t tile_of(const blocks_t *op) { /* blocks a tile */
    int64_t m = (int64_t)1 << op->log2_m;
    return m < TILE ? TILE / m : 1;
}

INLINE int64_t words_of(const blocks_t *op) { /* that the signs of a tile take, and room */
    int64_t m = (int64_t)1 << op->log2_m;
    return (m < TILE ? TILE : m) / 32 + 32;
}

/* Signs of `count` blocks from block b on; returns the bit where block b begins in `words`. Of one block only those of
   its used slots. */
INLINE int64_t signs(const blocks_t *op, int64_t b, int64_t count, uint32_t *words) {
    int64_t m = (int64_t)1 << op->log2_m, first = b * m;
    int64_t last = first + (count > 1 ? count * m : op->K + op->used);
    philox(op, first / 128, (last + 127) / 128, words);
    return first % 128;
}

/* ---- a version for each kind of processor ---- */

typedef int32_t words128 __attribute__((vector_size(16), may_alias));
typedef int32_t word __attribute__((aligned(1), may_alias));

enum { PLAIN, AVX2, AVX512 };

#define PATH(name) name##_plain
#define LANES 4
#define SHUFFLES 0
#define LOG2_LANES 2
#define JOIN(place, step) (*(const words128 *)(place))
#ifdef __SSE2__
#define STREAM(place, x) _mm_stream_ps(place, (__m128)(x))
#define TWICE(x, width) _mm_unpacklo_epi##width(x, x)
#define OF_SHORTS(place) \
    (floats)_mm_cvtepi32_ps(_mm_srai_epi32(TWICE(_mm_loadl_epi64((const __m128i *)(place)), 16), 16))
#define OF_BYTES(place) \
    (floats)_mm_cvtepi32_ps(_mm_srai_epi32(TWICE(TWICE(_mm_cvtsi32_si128(*(const word *)(place)), 8), 16), 24))
#else
#define STREAM(place, x) (*(floats *)(place) = (x))
#ifdef __ARM_NEON
#define OF_SHORTS(place) (floats)vcvtq_f32_s32(vmovl_s16(vld1_s16((const int16_t *)(place))))
#define OF_BYTES(place) \
    (floats)vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(*(const word *)(place)))))))
#else
#define OF_SHORTS(place) CONVERT(CONVERT(*(const free_shorts *)(place), ints), floats)
#define OF_BYTES(place) CONVERT(CONVERT(*(const free_bytes *)(place), ints), floats)
#endif
#endif
#include "blocks.h"

#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
#define PATH(name) name##_avx2
#define LANES 8
#define SHUFFLES 1
#define LOG2_LANES 3
#define STREAM(place, x) _mm256_stream_ps(place, (__m256)(x))
#define TWO(place, step) \
    _mm256_inserti128_si256(_mm256_castsi128_si256(*(const __m128i *)(place)), *(const __m128i *)((place) + (step)), 1)
#define JOIN(place, step) TWO(place, step)
#define OF_SHORTS(place) (floats)_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(place))))
#define OF_BYTES(place) (floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(place))))
#include "blocks.h"
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,avx512f,avx512bw,avx512vl,avx512dq"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,avx512f,avx512bw,avx512vl,avx512dq")
#endif
#define PATH(name) name##_avx512
#define LANES 16
#define SHUFFLES 1
#define LOG2_LANES 4
#define STREAM(place, x) _mm512_stream_ps(place, (__m512)(x))
#define JOIN(place, step) \
    _mm512_inserti64x4(_mm512_castsi256_si512(TWO(place, step)), TWO((place) + 2 * (step), step), 1)
#define OF_SHORTS(place) \
    (floats)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)(place))))
#define OF_BYTES(place) (floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(place))))
#include "blocks.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

/* ---- what callers see ---- */

/* The versions that this processor runs, a bit each. */
int64_t subcompress_paths(void) {
    int64_t found = 1 << PLAIN;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) found |= 1 << AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        found |= 1 << AVX512;
#endif
    return found;
}

int64_t subcompress_tile(void) { return TILE; }
int64_t subcompress_log2_near(void) { return LOG2_NEAR; }

/* The scratch of a call, in floats: the words of its signs, a tile, its slots twice; and a bundle of any kind. */
#define BUNDLE 20
int64_t subcompress_scratch(const blocks_t *op) {
    int64_t m = (int64_t)1 << op->log2_m, tile = m < TILE ? TILE : m;
    return words_of(op) + tile + 2 * m + (op->near ? BUNDLE * (m + 512) : 0);
}

/* Blocks [first, last): the weights of the segments, which are sorted, from c and the frozen value. short_numbers: c
   is (d,) 16-bit integers, and sums fit these; else c is (d,) floats. path: one that this processor runs. */
void subcompress_fill(int32_t path, const blocks_t *op, const void *c, int32_t short_numbers, float frozen,
                      const segment_t *segments, int64_t n, int64_t first, int64_t last, int32_t far, float *scratch) {
#if defined(__x86_64__)
    if (path == AVX512) fill_avx512(op, c, short_numbers, frozen, segments, n, first, last, far, scratch);
    else if (path == AVX2) fill_avx2(op, c, short_numbers, frozen, segments, n, first, last, far, scratch);
    else
#endif
    fill_plain(op, c, short_numbers, frozen, segments, n, first, last, far, scratch);
#ifdef __SSE__
    if (far) _mm_sfence();
#endif
}

/* Blocks [first, last): sums (d floats) += P^T of the segments' values times their scales; rows without any are 0. */
void subcompress_adjoint(int32_t path, const blocks_t *op, const segment_t *segments, int64_t n, int64_t first,
                         int64_t last, float *sums, float *scratch) {
#if defined(__x86_64__)
    if (path == AVX512) adjoint_avx512(op, segments, n, first, last, sums, scratch);
    else if (path == AVX2) adjoint_avx2(op, segments, n, first, last, sums, scratch);
    else
#endif
    adjoint_plain(op, segments, n, first, last, sums, scratch);
}
