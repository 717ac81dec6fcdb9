/* Operators 1 and 2 (signed Hadamard blocks, docs/FORMAT.md, sections 8 to 10) on a CPU, one thread a call.

   Sums are float32 additions. With integers below 2^16 they are exact in any order, so these are the bits of the
   format; with the numbers of a training they are sums as good as any. Blocks are handled in tiles that stay in the
   first cache: signs from Philox, slots strewn over their columns, the transform in place, weights written once.

   Plain C without Python's headers, called through ctypes; where no compiler was at hand the package works without. */

#include <stdint.h>
#include <string.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

#ifndef __GNUC__
#error "GCC or clang: vectors, and a version of each entry for each kind of processor"
#endif

#if defined(__x86_64__) && defined(__GLIBC__)
#define ENTRY __attribute__((target_clones("avx512f", "avx2", "default")))
#define LANES 16
#else
#define ENTRY
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#else
#define SHUFFLE(x, ...) __builtin_shuffle(x, (lanes){__VA_ARGS__})
#endif

/* A tile: rows that are transformed together, several blocks where those are small. */
#define TILE 1024

enum { F32, F16, BF16, F64 };

typedef struct {
    uint32_t key[2], stream;
    int32_t log2_m, K, used;
    int64_t d;
    const int32_t *columns; /* of each slot, frozen ones first: K + used */
    const int32_t *slots;   /* where blocks outgrow the first cache: columns ascend, and these are their slots; or null */
} blocks_t;

/* Rows [lo, hi) of the group: data = start + scale * row, start one for all or one a row; or data as an input. */
typedef struct {
    int64_t lo, hi;
    void *data;
    const float *starts;
    float start, scale;
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

/* ---- the transform ---- */

typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t lanes __attribute__((vector_size(4 * LANES)));
#if LANES == 16
#define SWAP1(x) SHUFFLE(x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
#define SWAP2(x) SHUFFLE(x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
#define SWAP4(x) SHUFFLE(x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
#define SWAP8(x) SHUFFLE(x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#define SIGN1 (vec){1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1}
#define SIGN2 (vec){1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1}
#define SIGN4 (vec){1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1}
#define SIGN8 (vec){1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1}
#define WITHIN(x) (x = SWAP1(x) + x * SIGN1, x = SWAP2(x) + x * SIGN2, x = SWAP4(x) + x * SIGN4, x = SWAP8(x) + x * SIGN8)
#define LOG2_LANES 4
#else
#define SWAP1(x) SHUFFLE(x, 1, 0, 3, 2)
#define SWAP2(x) SHUFFLE(x, 2, 3, 0, 1)
#define WITHIN(x) (x = SWAP1(x) + x * (vec){1, -1, 1, -1}, x = SWAP2(x) + x * (vec){1, 1, -1, -1})
#define LOG2_LANES 2
#endif

#define PAIR(a, b) do { vec t_ = a + b; b = a - b; a = t_; } while (0)

/* Three bits of the row number at once: strides h, 2 h, 4 h vectors. */
#define EIGHT(v)                                                                       \
    PAIR(v[0], v[1]); PAIR(v[2], v[3]); PAIR(v[4], v[5]); PAIR(v[6], v[7]);            \
    PAIR(v[0], v[2]); PAIR(v[1], v[3]); PAIR(v[4], v[6]); PAIR(v[5], v[7]);            \
    PAIR(v[0], v[4]); PAIR(v[1], v[5]); PAIR(v[2], v[6]); PAIR(v[3], v[7])

INLINE void pass8(vec *x, int64_t n, int64_t h) {
    for (int64_t base = 0; base < n; base += 8 * h)
        for (int64_t i = base; i < base + h; i++) {
            vec v[8];
            for (int j = 0; j < 8; j++) v[j] = x[i + j * h];
            EIGHT(v);
            for (int j = 0; j < 8; j++) x[i + j * h] = v[j];
        }
}

INLINE void pass2(vec *x, int64_t n, int64_t h) {
    for (int64_t base = 0; base < n; base += 2 * h)
        for (int64_t i = base; i < base + h; i++) {
            vec a = x[i], b = x[i + h];
            x[i] = a + b;
            x[i + h] = a - b;
        }
}

/* Rows that a core's first cache holds: larger blocks are brought down to it first, then done piece by piece. */
#define LOG2_NEAR 13

/* H_m times each block of a tile of n floats, in place. */
INLINE void transform(float *x, int64_t n, int log2_m) {
    int bit = log2_m;
    if (log2_m >= LOG2_LANES) {
        int64_t vectors = n / LANES, piece = vectors;
        int above = log2_m - LOG2_LANES;
        for (; above > LOG2_NEAR - LOG2_LANES + 2; above -= 3) pass8((vec *)x, vectors, (int64_t)1 << (above - 3));
        for (; above > LOG2_NEAR - LOG2_LANES; above--) pass2((vec *)x, vectors, (int64_t)1 << (above - 1));
        if (log2_m > LOG2_NEAR) piece = (int64_t)1 << above;
        for (vec *v = (vec *)x; v < (vec *)x + vectors; v += piece) {
            int rest = above;
            for (; rest % 3; rest--) pass2(v, piece, (int64_t)1 << (rest - 1));
            for (; rest > 3; rest -= 3) pass8(v, piece, (int64_t)1 << (rest - 3));
            if (rest == 3)
                for (int64_t i = 0; i < piece; i += 8) {
                    vec w[8];
                    for (int j = 0; j < 8; j++) w[j] = v[i + j];
                    EIGHT(w);
                    for (int j = 0; j < 8; j++) { WITHIN(w[j]); v[i + j] = w[j]; }
                }
            else
                for (int64_t i = 0; i < piece; i++) { vec w = v[i]; WITHIN(w); v[i] = w; }
        }
        bit = 0;
    }
    for (; bit > 0; bit--) {
        int64_t h = (int64_t)1 << (bit - 1);
        for (int64_t base = 0; base < n; base += 2 * h)
            for (int64_t i = base; i < base + h; i++) {
                float a = x[i], b = x[i + h];
                x[i] = a + b;
                x[i + h] = a - b;
            }
    }
}

/* ---- signs ---- */

INLINE float flipped(float value, uint32_t bit) {
    uint32_t u;
    memcpy(&u, &value, 4);
    u ^= bit << 31;
    memcpy(&value, &u, 4);
    return value;
}

/* to[j] = from[j] or its negative, by the n bits from `bit` on. */
INLINE void flip(const float *from, float *to, int64_t n, const uint32_t *words, int64_t bit) {
    int64_t j = 0;
    words += bit / 32;
    bit %= 32;
    if (bit == 0)
        for (; j + 32 <= n; j += 32) {
            uint32_t w = words[j / 32];
            for (int t = 0; t < 32; t++) to[j + t] = flipped(from[j + t], w >> t);
        }
    for (; j < n; j++) to[j] = flipped(from[j], words[(bit + j) / 32] >> ((bit + j) % 32));
}

/* ---- weights ---- */

INLINE uint16_t half(float theta) { /* IEEE 754 binary16, to nearest even */
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

/* out[i] = start + scale * w[i]; far: past the caches, which what is larger than them would only wash out. */
INLINE void emit32(float *out, float start, float scale, const float *w, int64_t n, int far) {
    int64_t i = 0;
#ifdef __SSE__
    if (far) {
        __m128 starts = _mm_set1_ps(start), scales = _mm_set1_ps(scale);
        for (; i < n && (uintptr_t)(out + i) % 16; i++) out[i] = start + scale * w[i];
        for (; i + 4 <= n; i += 4) _mm_stream_ps(out + i, starts + scales * _mm_loadu_ps(w + i));
    }
#else
    (void)far;
#endif
    for (; i < n; i++) out[i] = start + scale * w[i];
}

/* Row `at` of the segment onwards, n of them. */
INLINE void emit(const segment_t *s, int64_t at, const float *w, int64_t n, int far) {
    float start = s->start + 0.0f, scale = s->scale;
    if (s->starts) {
        float *out = (float *)s->data + at;
        const float *starts = s->starts + at;
        for (int64_t i = 0; i < n; i++) out[i] = starts[i] + scale * w[i];
        return;
    }
    switch (s->dtype) {
    case F32: emit32((float *)s->data + at, start, scale, w, n, far); break;
    case F16: { uint16_t *out = (uint16_t *)s->data + at; for (int64_t i = 0; i < n; i++) out[i] = half(start + scale * w[i]); break; }
    case BF16: { uint16_t *out = (uint16_t *)s->data + at; for (int64_t i = 0; i < n; i++) out[i] = brain(start + scale * w[i]); break; }
    case F64: { double *out = (double *)s->data + at; for (int64_t i = 0; i < n; i++) out[i] = (double)(start + scale * w[i]); break; }
    }
}

/* ---- blocks ---- */

INLINE int64_t tile_of(const blocks_t *op) { /* blocks a tile */
    int64_t m = (int64_t)1 << op->log2_m;
    return m < TILE ? TILE / m : 1;
}

/* Signs of `count` blocks from block b on; returns the bit where block b begins in `words`. Of one block only those of
   its used slots. */
INLINE int64_t signs(const blocks_t *op, int64_t b, int64_t count, uint32_t *words) {
    int64_t m = (int64_t)1 << op->log2_m, first = b * m;
    int64_t last = first + (count > 1 ? count * m : op->K + op->used);
    philox(op, first / 128, (last + 127) / 128, words);
    return first % 128;
}

/* Slots to their columns, and back. */
INLINE void strew(const blocks_t *op, const float *restrict slots, float *restrict block) {
    const int32_t *restrict columns = op->columns, *restrict of = op->slots;
    int64_t n = op->K + op->used, j = 0;
    if (of) {
        for (; j < n; j++) block[columns[j]] = slots[of[j]];
        return;
    }
    for (; j + 4 <= n; j += 4) {
        int64_t a = columns[j], b = columns[j + 1], c = columns[j + 2], d = columns[j + 3];
        block[a] = slots[j], block[b] = slots[j + 1], block[c] = slots[j + 2], block[d] = slots[j + 3];
    }
    for (; j < n; j++) block[columns[j]] = slots[j];
}

INLINE void collect(const blocks_t *op, const float *restrict block, float *restrict slots) {
    const int32_t *restrict columns = op->columns, *restrict of = op->slots;
    int64_t n = op->K + op->used;
    if (of)
        for (int64_t j = 0; j < n; j++) slots[of[j]] = block[columns[j]];
    else
        for (int64_t j = 0; j < n; j++) slots[j] = block[columns[j]];
}

/* What callers must know: rows of a tile, and the blocks (2^n rows) beyond which `slots` are wanted. */
ENTRY int64_t subcompress_tile(void) { return TILE; }
ENTRY int64_t subcompress_log2_near(void) { return LOG2_NEAR; }

/* The scratch of a call, in floats: a tile, its slots twice, the words of its signs. */
ENTRY int64_t subcompress_scratch(const blocks_t *op) {
    int64_t m = (int64_t)1 << op->log2_m, tile = m < TILE ? TILE : m;
    return tile + 2 * m + tile / 32 + 32;
}

/* Blocks [first, last): the weights of the segments, which are sorted, from c (d floats) and the frozen value. */
ENTRY void subcompress_fill(const blocks_t *op, const float *c, float frozen, const segment_t *segments, int64_t n,
                            int64_t first, int64_t last, int32_t far, float *scratch) {
    int64_t m = (int64_t)1 << op->log2_m, tile = m < TILE ? TILE : m, group = tile_of(op);
    int64_t K = op->K, used = op->used, free_slots = m - K, at = 0;
    float *x = scratch, *slots = x + tile, *signed_slots = slots + m;
    uint32_t *words = (uint32_t *)(signed_slots + m);
    for (int64_t j = 0; j < K; j++) slots[j] = frozen;
    for (int64_t j = 0; j < used; j++) slots[K + j] = c[j];
    for (int64_t b = first; b < last; b += group) {
        int64_t count = last - b < group ? last - b : group, rows = count * m, lo = b * m;
        while (at < n && segments[at].hi <= lo) at++;
        if (at == n) break;
        if (segments[at].lo >= lo + rows) continue;
        int64_t bit = signs(op, b, count, words);
        if (m == 1) {
            int64_t read = b % op->d;
            for (int64_t i = 0; i < count; i++) {
                slots[0] = c[read];
                x[i] = flipped(slots[0], words[(bit + i) / 32] >> ((bit + i) % 32));
                if (++read == op->d) read = 0;
            }
        } else {
            memset(x, 0, sizeof(float) * (size_t)rows);
            for (int64_t i = 0; i < count; i++) {
                float *block = x + i * m;
                if (op->d > free_slots) { /* a window that moves on by free_slots a block */
                    int64_t from = (b + i) * free_slots % op->d, head = op->d - from < used ? op->d - from : used;
                    memcpy(slots + K, c + from, sizeof(float) * (size_t)head);
                    memcpy(slots + K + head, c, sizeof(float) * (size_t)(used - head));
                }
                flip(slots, signed_slots, K + used, words, bit + i * m);
                strew(op, signed_slots, block);
            }
            transform(x, rows, op->log2_m);
        }
        for (int64_t s = at; s < n && segments[s].lo < lo + rows; s++) {
            int64_t from = segments[s].lo > lo ? segments[s].lo : lo;
            int64_t to = segments[s].hi < lo + rows ? segments[s].hi : lo + rows;
            emit(&segments[s], from - segments[s].lo, x + (from - lo), to - from, far);
        }
    }
#ifdef __SSE__
    if (far) _mm_sfence();
#endif
}

/* Blocks [first, last): sums (d floats) += P^T of the segments' values times their scales; rows without any are 0. */
ENTRY void subcompress_adjoint(const blocks_t *op, const segment_t *segments, int64_t n, int64_t first, int64_t last,
                               float *sums, float *scratch) {
    int64_t m = (int64_t)1 << op->log2_m, tile = m < TILE ? TILE : m, group = tile_of(op);
    int64_t K = op->K, used = op->used, free_slots = m - K, at = 0;
    float *x = scratch, *slots = x + tile;
    uint32_t *words = (uint32_t *)(slots + 2 * m);
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
        transform(x, rows, op->log2_m);
        for (int64_t i = 0; i < count; i++) {
            const float *block = x + i * m;
            int64_t read = op->d > free_slots ? (b + i) * free_slots % op->d : 0;
            int64_t head = op->d - read < used ? op->d - read : used;
            collect(op, block, slots);
            flip(slots, slots, K + used, words, bit + i * m);
            for (int64_t j = 0; j < head; j++) sums[read + j] += slots[K + j];
            for (int64_t j = head; j < used; j++) sums[j - head] += slots[K + j];
        }
    }
}
