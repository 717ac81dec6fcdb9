/* Blocks of one kind of number, floats or 16-bit integers, on one kind of processor: included by blocks.h for each.

   E: the number; N: how many fill a vector, LOG2_N; I: the integer of its size; T(name): the names of what is defined
   here; NEAR: log2 of the numbers that a core's first cache holds. */

typedef E T(vec) __attribute__((vector_size(sizeof(E) * N), may_alias));
typedef E T(free_vec) __attribute__((vector_size(sizeof(E) * N), aligned(sizeof(E)), may_alias));
typedef I T(mask) __attribute__((vector_size(sizeof(E) * N)));

#if N == 4
#define ALL(f, k) f(0, k), f(1, k), f(2, k), f(3, k)
#elif N == 8
#define ALL(f, k) EIGHT_OF(f, 0, k)
#elif N == 16
#define ALL(f, k) EIGHT_OF(f, 0, k), EIGHT_OF(f, 8, k)
#else
#define ALL(f, k) EIGHT_OF(f, 0, k), EIGHT_OF(f, 8, k), EIGHT_OF(f, 16, k), EIGHT_OF(f, 24, k)
#endif
#define LANE ((int)(16 / sizeof(E))) /* numbers of a 128-bit lane, which is how far most shuffles reach */
#define OTHER(i, k) (((i) ^ (k)) & (N - 1))
#define SIGN(i, k) ((i) & (k) ? -1 : 1)
/* Of two vectors, lane by lane, their numbers by turns: of the low halves of the lanes or, with k = 1, of the high. */
#define LOW_HALVES(i, k) \
    (((i) & 1) * N + ((i) & ~(LANE - 1)) + ((i) & (LANE - 1)) / 2 + (k) * LANE / 2)
#define BIT(i, k) ((I)(1u << (i) % 16))

/* ---- the transform ---- */

/* H of the lowest k bits of the row number, those within a vector. */
#define WITHIN(x, k) x = SHUFFLE(T(mask), x, ALL(OTHER, k)) + x * (T(vec)){ALL(SIGN, k)}

INLINE T(vec) T(within)(T(vec) x) {
    WITHIN(x, 1);
    WITHIN(x, 2);
    if (N > 4) WITHIN(x, 4);
    if (N > 8) WITHIN(x, 8);
    if (N > 16) WITHIN(x, 16);
    return x;
}

/* Three bits of the row number at once: strides h, 2 h, 4 h vectors. */
INLINE void T(pass8)(T(vec) *x, int64_t n, int64_t h) {
    for (int64_t base = 0; base < n; base += 8 * h)
        for (int64_t i = base; i < base + h; i++) {
            T(vec) v[8];
            for (int j = 0; j < 8; j++) v[j] = x[i + j * h];
            EIGHT(T(vec), v);
            for (int j = 0; j < 8; j++) x[i + j * h] = v[j];
        }
}

INLINE void T(pass2)(T(vec) *x, int64_t n, int64_t h) {
    for (int64_t base = 0; base < n; base += 2 * h)
        for (int64_t i = base; i < base + h; i++) {
            T(vec) a = x[i], b = x[i + h];
            x[i] = a + b;
            x[i + h] = a - b;
        }
}

/* H_m times each block of a tile of n numbers, in place. Blocks that outgrow the first cache are brought down to it
   first, then done piece by piece. */
APART void T(transform)(E *x, int64_t n, int log2_m) {
    if (log2_m < LOG2_N) {
        for (int bit = log2_m; bit > 0; bit--) {
            int64_t h = (int64_t)1 << (bit - 1);
            for (int64_t base = 0; base < n; base += 2 * h)
                for (int64_t i = base; i < base + h; i++) {
                    E a = x[i], b = x[i + h];
                    x[i] = a + b;
                    x[i + h] = a - b;
                }
        }
        return;
    }
    int64_t vectors = n / N, piece = vectors;
    int above = log2_m - LOG2_N;
    for (; above > NEAR - LOG2_N + 2; above -= 3) T(pass8)((T(vec) *)x, vectors, (int64_t)1 << (above - 3));
    for (; above > NEAR - LOG2_N; above--) T(pass2)((T(vec) *)x, vectors, (int64_t)1 << (above - 1));
    if (log2_m > NEAR) piece = (int64_t)1 << above;
    for (T(vec) *v = (T(vec) *)x; v < (T(vec) *)x + vectors; v += piece) {
        int rest = above;
        for (; rest % 3; rest--) T(pass2)(v, piece, (int64_t)1 << (rest - 1));
        for (; rest > 3; rest -= 3) T(pass8)(v, piece, (int64_t)1 << (rest - 3));
        if (rest == 3)
            for (int64_t i = 0; i < piece; i += 8) {
                T(vec) w[8];
                for (int j = 0; j < 8; j++) w[j] = v[i + j];
                EIGHT(T(vec), w);
                for (int j = 0; j < 8; j++) v[i + j] = T(within)(w[j]);
            }
        else
            for (int64_t i = 0; i < piece; i++) v[i] = T(within)(v[i]);
    }
}

/* ---- signs ---- */

INLINE E T(flipped)(E value, uint32_t bit) { return bit & 1 ? -value : value; }

/* to[0 .. 31] = from[0 .. 31] or its negative, by the bits of a word. */
INLINE void T(flip32)(const E *from, E *to, uint32_t word) {
    for (int k = 0; k < 32; k += N) {
#if N == 32
        T(mask) words = (T(mask)){} + (I)(uint16_t)word, high = (T(mask)){} + (I)(word >> 16);
        words = SHUFFLE2(T(mask), words, high, EIGHT_OF(SELF, 0, 0), EIGHT_OF(SELF, 8, 0), EIGHT_OF(SELF, 32, 0),
                         EIGHT_OF(SELF, 40, 0));
#else
        T(mask) words = (T(mask)){} + (I)(word >> k);
#endif
        T(mask) bits = {ALL(BIT, 0)}, minus = (words & bits) == bits;
        T(vec) x = *(const T(free_vec) *)(from + k);
#if FLOATS
        x = (T(vec))((T(mask))x ^ (minus & (I)0x80000000u));
#else
        x = (x ^ minus) - minus;
#endif
        *(T(free_vec) *)(to + k) = x;
    }
}

/* x = x or its negative, by the n bits from `bit` on. */
INLINE void T(flip)(E *x, int64_t n, const uint32_t *words, int64_t bit) {
    int64_t j = 0;
    words += bit / 32;
    bit %= 32;
    if (bit == 0)
        for (; j + 32 <= n; j += 32) T(flip32)(x + j, x + j, words[j / 32]);
    for (; j < n; j++) x[j] = T(flipped)(x[j], words[(bit + j) / 32] >> ((bit + j) % 32));
}

/* Slots, signed by the bits from `bit` on, to their columns. */
APART void T(strew)(const blocks_t *op, const E *restrict slots, const uint32_t *words, int64_t bit,
                     E *restrict block) {
    const uint16_t *restrict near = op->near;
    int64_t n = op->K + op->used, j = 0;
    E part[32] __attribute__((aligned(64)));
    words += bit / 32;
    bit %= 32;
    if (bit == 0)
        for (; j + 32 <= n; j += 32) {
            T(flip32)(slots + j, part, words[j / 32]);
            for (int t = 0; t < 32; t++) block[near[j + t]] = part[t];
        }
    for (; j < n; j++) block[near[j]] = T(flipped)(slots[j], words[(bit + j) / 32] >> ((bit + j) % 32));
}

/* The same where blocks outgrow the first cache: columns ascend. */
APART void T(strew_far)(const blocks_t *op, const E *slots, const uint32_t *words, E *restrict held,
                         E *restrict block) {
    const int32_t *columns = op->columns, *of = op->slots;
    int64_t n = op->K + op->used, j = 0;
    memcpy(held, slots, sizeof(E) * (size_t)n);
    T(flip)(held, n, words, 0);
    for (; j < n; j++) block[columns[j]] = held[of[j]];
}

/* ---- weights ---- */

/* As many numbers as a vector holds floats, as floats. */
INLINE floats T(load)(const E *w) {
#if FLOATS
    return *(const free_floats *)w;
#else
    return OF_SHORTS(w);
#endif
}

/* out[i] = start + scale * w[i], or its seeded[i] times `unit` added to the start. far: past the caches, which what is
   larger than them would only wash out. */
INLINE void T(emit32)(float *out, const segment_t *s, const E *w, const int8_t *seeded, int64_t n, int far) {
    float start = s->start + 0.0f, scale = s->scale, unit = s->unit;
    int64_t i = 0;
#define ONE(i) ((seeded ? start + unit * (float)seeded[i] : start) + scale * (float)w[i])
    for (; i < n && (uintptr_t)(out + i) % sizeof(floats); i++) out[i] = ONE(i);
    for (; i + LANES <= n; i += LANES) {
        floats begin = (floats){} + start;
        if (seeded) begin += unit * OF_BYTES(seeded + i);
        begin += scale * T(load)(w + i);
        if (far) STREAM(out + i, begin);
        else *(floats *)(out + i) = begin;
    }
    for (; i < n; i++) out[i] = ONE(i);
}

/* n rows of the segment from row `at` on. */
APART void T(emit)(const segment_t *s, int64_t at, const E *w, const int8_t *seeded, int64_t n, int far) {
    float start = s->start + 0.0f, scale = s->scale, unit = s->unit;
    if (s->starts) {
        float *out = (float *)s->data + at;
        const float *starts = s->starts + at;
        if (seeded)
            for (int64_t i = 0; i < n; i++) out[i] = starts[i] + unit * (float)seeded[i] + scale * (float)w[i];
        else
            for (int64_t i = 0; i < n; i++) out[i] = starts[i] + scale * (float)w[i];
        return;
    }
#define EACH(type, rounded)                                                                         \
    {                                                                                               \
        type *out = (type *)s->data + at;                                                           \
        if (seeded) for (int64_t i = 0; i < n; i++) out[i] = rounded(ONE(i));                       \
        else for (int64_t i = 0; i < n; i++) out[i] = rounded(start + scale * (float)w[i]);         \
        break;                                                                                      \
    }
    switch (s->dtype) {
    case F32:
        if (seeded) T(emit32)((float *)s->data + at, s, w, seeded, n, far);
        else T(emit32)((float *)s->data + at, s, w, NULL, n, far);
        break;
    case F16: EACH(uint16_t, half)
    case BF16: EACH(uint16_t, brain)
    case F64: EACH(double, (double))
    }
}

/* The part of a tile of `rows` rows from row lo on, w, that the segment asks for. */
INLINE void T(write)(const segment_t *s, int64_t lo, int64_t rows, const E *w, int far) {
    int64_t from = s->lo > lo ? s->lo : lo, to = s->hi < lo + rows ? s->hi : lo + rows;
    if (!s->seeded) {
        T(emit)(s, from - s->lo, w + (from - lo), NULL, to - from, far);
        return;
    }
    int8_t integers[SEEDED_ROWS] __attribute__((aligned(64)));
    while (from < to) { /* whole blocks of the seeded rows, but for the ends */
        int64_t row = s->seeded_row + (from - s->lo), skip = row % 64;
        int64_t n = to - from < SEEDED_ROWS - skip ? to - from : SEEDED_ROWS - skip;
        PATH(seeded)(s->seeded, row / 64, (row + n + 63) / 64, integers);
        T(emit)(s, from - s->lo, w + (from - lo), integers + skip, n, far);
        from += n;
    }
}

/* ---- bundles: as many blocks at once as a vector has numbers ---- */

/* Rows that go from a bundle to their places at a time. */
#define CHUNK 256

/* Of m rows of N blocks beside each other, rows [row, row + rows): each block's own, in a row. */
INLINE void T(part)(const T(vec) *x, int64_t row, int64_t rows, E *out) {
    for (int64_t r = 0; r < rows; r += N)
        for (int64_t lane = 0; lane < N / LANE; lane++) {
            T(vec) v[16 / sizeof(E)], w[16 / sizeof(E)];
            for (int64_t i = 0; i < LANE; i++)
                v[i] = (T(vec))JOIN((const char *)(x + row + r + i) + 16 * lane, LANE * (int64_t)sizeof(T(vec)));
            for (int64_t round = 1; round < LANE; round *= 2) {
                for (int64_t i = 0; i < LANE / 2; i++) {
                    w[2 * i] = SHUFFLE2(T(mask), v[i], v[i + LANE / 2], ALL(LOW_HALVES, 0));
                    w[2 * i + 1] = SHUFFLE2(T(mask), v[i], v[i + LANE / 2], ALL(LOW_HALVES, 1));
                }
                for (int64_t i = 0; i < LANE; i++) v[i] = w[i];
            }
            for (int64_t i = 0; i < LANE; i++) *(T(vec) *)(out + (lane * LANE + i) * CHUNK + r) = v[i];
        }
}

/* Signs of N blocks from block b on, transposed: of 16 slots at a time, each block's 16 bits. */
INLINE void T(bundle_signs)(const blocks_t *op, int64_t b, uint32_t *words, I *bits) {
    int64_t m = (int64_t)1 << op->log2_m, n = op->K + op->used, stride = m / 16;
    const uint16_t *from = (const uint16_t *)words + b * m % 128 / 16;
    if (m < 128) philox(op, b * m / 128, ((b + N) * m + 127) / 128, words);
    else
        for (int64_t i = 0; i < N; i++)
            philox(op, (b + i) * m / 128, ((b + i) * m + n + 127) / 128, words + i * m / 32);
    for (int64_t q = 0; 16 * q < n; q++)
        for (int64_t i = 0; i < N; i++) bits[q * N + i] = (I)from[i * stride + q];
}

/* N blocks from block b on: rows of all of them beside each other, before the last passes of the transform. */
INLINE void T(bundle_strew)(const blocks_t *op, const E *restrict slots, const I *bits, T(vec) *restrict x) {
    const uint16_t *restrict near = op->near;
    int64_t m = (int64_t)1 << op->log2_m, n = op->K + op->used, j = 0;
    memset(x, 0, sizeof(T(vec)) * (size_t)m);
#if FLOATS
#define SIGNED(c, t) ((T(vec))(((T(mask))((T(vec)){} + (c))) ^ (word << (31 - (t)) & (I)0x80000000u)))
#else
#define SIGNED(c, t) ((((T(mask)){} + (c)) ^ (word << (15 - (t)) >> 15)) - (word << (15 - (t)) >> 15))
#endif
    for (; j + 16 <= n; j += 16) {
        T(mask) word = *(const T(mask) *)(bits + j / 16 * N);
#pragma GCC unroll 16
        for (int t = 0; t < 16; t++) x[near[j + t]] = (T(vec))SIGNED(slots[j + t], t);
    }
    if (j < n) {
        T(mask) word = *(const T(mask) *)(bits + j / 16 * N);
        for (int t = 0; j + t < n; t++) x[near[j + t]] = (T(vec))SIGNED(slots[j + t], t);
    }
}

/* Of N blocks from block b on, those before block `last`: the weights of the segments from segment `at` on. */
APART void T(bundle)(const blocks_t *op, const E *slots, const segment_t *segments, int64_t n, int64_t at, int64_t b,
                     int64_t last, int far, float *scratch) {
    int64_t m = (int64_t)1 << op->log2_m, count = last - b < N ? last - b : N, ats[N];
    int64_t piece = m < (int64_t)1 << (13 - LOG2_N) ? m : (int64_t)1 << (13 - LOG2_N);
    int64_t chunk = m < CHUNK ? m : CHUNK;
    T(vec) *x = (T(vec) *)scratch;
    E *own = (E *)(x + m);
    uint32_t *words = (uint32_t *)(own + N * CHUNK);
    I *bits = (I *)(words + N * m / 32 + 16);
    int above = op->log2_m;
    T(bundle_signs)(op, b, words, bits);
    T(bundle_strew)(op, slots, bits, x);
    for (; (int64_t)8 * piece <= (int64_t)1 << above; above -= 3) T(pass8)(x, m, (int64_t)1 << (above - 3));
    for (; piece < (int64_t)1 << above; above--) T(pass2)(x, m, (int64_t)1 << (above - 1));
    for (int64_t i = 0; i < count; i++) ats[i] = at;
    for (int64_t row = 0; row < m; row += chunk) {
        if (row % piece == 0) {
            int rest = above;
            for (; rest % 3; rest--) T(pass2)(x + row, piece, (int64_t)1 << (rest - 1));
            for (; rest > 0; rest -= 3) T(pass8)(x + row, piece, (int64_t)1 << (rest - 3));
        }
        T(part)(x, row, chunk, own);
        for (int64_t i = 0; i < count; i++) {
            int64_t lo = (b + i) * m + row;
            while (ats[i] < n && segments[ats[i]].hi <= lo) ats[i]++;
            for (int64_t s = ats[i]; s < n && segments[s].lo < lo + chunk; s++)
                T(write)(&segments[s], lo, chunk, own + i * CHUNK, far);
        }
    }
}

/* Blocks [first, last): the weights of the segments, which are sorted, from c (d numbers) and the frozen value. */
APART void T(fill)(const blocks_t *op, const E *c, E frozen, const segment_t *segments, int64_t n, int64_t first,
                    int64_t last, int far, float *scratch) {
    int64_t m = (int64_t)1 << op->log2_m, tile = m < TILE ? TILE : m, group = tile_of(op);
    int64_t K = op->K, used = op->used, free_slots = m - K, at = 0;
    uint32_t *words = (uint32_t *)scratch;
    E *x = (E *)(words + words_of(op)), *slots = x + tile, *held = slots + m;
    float *more = scratch + words_of(op) + tile + 2 * m;
    for (int64_t j = 0; j < K; j++) slots[j] = frozen;
    if (op->d <= free_slots)
        for (int64_t j = 0; j < used; j++) slots[K + j] = c[j];
    for (int64_t b = first; b < last; b += group) {
        int64_t count = last - b < group ? last - b : group, rows = count * m, lo = b * m;
        while (at < n && segments[at].hi <= lo) at++;
        if (at == n) break;
        if (op->near && m >= BUNDLED && op->d <= free_slots && last - b >= FEW) { /* all blocks read the same */
            if (segments[at].lo < lo + N * m) T(bundle)(op, slots, segments, n, at, b, last, far, more);
            b += N - group;
            continue;
        }
        if (segments[at].lo >= lo + rows) continue;
        int64_t bit = signs(op, b, count, words);
        if (m == 1) {
            int64_t read = b % op->d;
            for (int64_t i = 0; i < count; i++) {
                x[i] = T(flipped)(c[read], words[(bit + i) / 32] >> ((bit + i) % 32));
                if (++read == op->d) read = 0;
            }
        } else {
            memset(x, 0, sizeof(E) * (size_t)rows);
            for (int64_t i = 0; i < count; i++) {
                if (op->d > free_slots) { /* a window that moves on by free_slots a block */
                    int64_t from = (b + i) * free_slots % op->d, head = op->d - from < used ? op->d - from : used;
                    memcpy(slots + K, c + from, sizeof(E) * (size_t)head);
                    memcpy(slots + K + head, c, sizeof(E) * (size_t)(used - head));
                }
                if (op->slots) T(strew_far)(op, slots, words + bit / 32, held, x);
                else T(strew)(op, slots, words, bit + i * m, x + i * m);
            }
            T(transform)(x, rows, op->log2_m);
        }
        for (int64_t s = at; s < n && segments[s].lo < lo + rows; s++) T(write)(&segments[s], lo, rows, x, far);
    }
}

#undef ALL
#undef CHUNK
#undef LANE
#undef SIGNED
#undef LOW_HALVES
#undef OTHER
#undef SIGN
#undef BIT
#undef WITHIN
#undef ONE
#undef EACH
#undef E
#undef I
#undef N
#undef LOG2_N
#undef T
#undef NEAR
#undef FLOATS
