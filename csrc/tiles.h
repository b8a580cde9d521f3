// Small products of float32 matrices whose sums stay in registers, and the packing that they read.
#pragma once

#include <algorithm>
#include <type_traits>

#include "dtypes.h"
#include "lanes.h"
#include "share.h"

namespace fv {

// One operand of a product: element (row, k) is at a[row * by_row + k * by_k].
struct Left {
    const float* a;
    int64_t by_row, by_k;
};

// c[r, :] (+)= sum over k of left(r, k) * b[k, :], for R rows and V vectors. What was in c is added at the
// end: in a long sum that is cut into blocks no term then meets more than its block and the blocks one
// another.
template <int W, int R, int V>
struct Tile {
    static FV_INLINE void run(Left left, const float* b, int64_t ldb, int64_t depth, bool add, float* c,
                              int64_t ldc) {
        Floats<W> sum[R][V];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
            for (int i = 0; i < V; ++i) sum[r][i] = Floats<W>{};
        }
        const float* a = left.a;
        for (int64_t k = 0; k < depth; ++k, a += left.by_k, b += ldb) {
            Floats<W> right[V];
#pragma GCC unroll 4
            for (int i = 0; i < V; ++i) right[i] = load<W>(b + i * W);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const float x = a[r * left.by_row];
#pragma GCC unroll 4
                for (int i = 0; i < V; ++i) sum[r][i] += x * right[i];
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
            for (int i = 0; i < V; ++i) {
                float* to = c + r * ldc + i * W;
                store<W>(add ? load<W>(to) + sum[r][i] : sum[r][i], to);
            }
        }
    }
};

template <int W, int V>
FV_INLINE void tile(int64_t rows, Left left, const float* b, int64_t ldb, int64_t depth, bool add, float* c,
                    int64_t ldc) {
    switch (rows) {
        case 1:
            return call<W, Tile<W, 1, V>>(left, b, ldb, depth, add, c, ldc);
        case 2:
            return call<W, Tile<W, 2, V>>(left, b, ldb, depth, add, c, ldc);
        case 3:
            return call<W, Tile<W, 3, V>>(left, b, ldb, depth, add, c, ldc);
        case 4:
            return call<W, Tile<W, 4, V>>(left, b, ldb, depth, add, c, ldc);
        case 5:
            return call<W, Tile<W, 5, V>>(left, b, ldb, depth, add, c, ldc);
        default:
            return call<W, Tile<W, 6, V>>(left, b, ldb, depth, add, c, ldc);
    }
}

// c (rows, columns) (+)= left (rows, depth) · b (depth, columns), c with rows of ldc. Columns come in chunks
// of `chunk` vectors, which lie `next` floats apart in b, a row of it ldb floats.
template <int W>
FV_INLINE void product(Left left, const float* b, int64_t ldb, int64_t chunk, int64_t next, int64_t rows,
                       int64_t depth, int64_t columns, bool add, float* c, int64_t ldc) {
    for (int64_t first = 0; first < columns; first += chunk * W, b += next) {
        const int64_t vectors = std::min(chunk, (columns - first + W - 1) / W);
        for (int64_t row = 0; row < rows; row += 6) {
            const Left at{left.a + row * left.by_row, left.by_row, left.by_k};
            const int64_t some = std::min<int64_t>(rows - row, 6);
            float* to = c + row * ldc + first;
            switch (vectors) {
                case 1:
                    tile<W, 1>(some, at, b, ldb, depth, add, to, ldc);
                    break;
                case 2:
                    tile<W, 2>(some, at, b, ldb, depth, add, to, ldc);
                    break;
                case 3:
                    if constexpr (W == 16) tile<W, 3>(some, at, b, ldb, depth, add, to, ldc);
                    break;
                default:
                    if constexpr (W == 16) tile<W, 4>(some, at, b, ldb, depth, add, to, ldc);
            }
        }
    }
}

// left (rows, depth) times PackColumns of `columns` columns, whole vectors, in panels of at most
// Lanes<W>::panel.
template <int W>
FV_INLINE void product_columns(Left left, const float* packed, int64_t rows, int64_t depth, int64_t columns,
                               float* c, int64_t ldc) {
    const int64_t panel = std::min(Lanes<W>::panel, columns);
    product<W>(left, packed, panel, Lanes<W>::vectors, panel * depth, rows, depth, columns, false, c, ldc);
}

// c += left (rows, depth) times the rows b (depth, columns), `columns` a multiple of W.
template <int W>
FV_INLINE void add_product_rows(Left left, const float* b, int64_t rows, int64_t depth, int64_t columns,
                                float* c) {
    // Even chunks: five vectors are 3 + 2, not 4 + 1, since one vector leaves the multipliers waiting.
    const int64_t vectors = columns / W, chunks = (vectors + Lanes<W>::vectors - 1) / Lanes<W>::vectors;
    const int64_t chunk = (vectors + chunks - 1) / chunks;
    product<W>(left, b, columns, chunk, chunk * W, rows, depth, columns, true, c, columns);
}

// x (count, width), rows `stride` apart → out (count, padded) times `scale`, zeros behind each row.
template <class T>
struct PackRows {
    static FV_INLINE void run(const T* x, int64_t stride, int64_t width, int64_t count, int64_t padded,
                              float scale, float* out) {
        for (int64_t row = 0; row < count; ++row, x += stride, out += padded) {
            for (int64_t i = 0; i < width; ++i) out[i] = to_float(x[i]) * scale;
            for (int64_t i = width; i < padded; ++i) out[i] = 0.0f;
        }
    }
};

// Elements i0, i1 of a and i2, i3 of b.
#if defined(__clang__)
#define FV_PICK(a, b, i0, i1, i2, i3) __builtin_shufflevector(a, b, i0, i1, 4 + i2, 4 + i3)
#else
#define FV_PICK(a, b, i0, i1, i2, i3) __builtin_shuffle(a, b, Lanes<4>::Ints{i0, i1, 4 + i2, 4 + i3})
#endif

template <class T>
FV_INLINE Floats<4> four(const T* x) {
    if constexpr (std::is_same_v<T, float>) return load<4>(x);
    return Floats<4>{to_float(x[0]), to_float(x[1]), to_float(x[2]), to_float(x[3])};
}

// x (count, width), rows `stride` apart → its transpose in panels of `panel` columns, each (width, panel);
// zeros behind the last column up to a whole vector.
template <int W>
struct PackColumns {
    template <class T>
    struct Of {
        static FV_INLINE void run(const T* x, int64_t stride, int64_t width, int64_t count, int64_t panel,
                                  float* out) {
            for (int64_t first = 0; first < count; first += panel, out += panel * width) {
                const int64_t real = std::min(count - first, panel), whole = round_up(real, W);
                for (int64_t column = 0; column < whole; column += 4) {
                    const T* from = x + (first + column) * stride;
                    float* to = out + column;
                    if (column + 4 <= real) {
                        four_columns(from, stride, width, panel, to);
                        continue;
                    }
                    for (int64_t i = 0; i < width; ++i) store<4>(Floats<4>{}, to + i * panel);
                    for (int64_t j = 0; j < real - column; ++j) {
                        for (int64_t i = 0; i < width; ++i)
                            to[i * panel + j] = to_float(from[j * stride + i]);
                    }
                }
            }
        }

        static FV_INLINE void four_columns(const T* a, int64_t stride, int64_t width, int64_t panel,
                                           float* to) {
            const T *b = a + stride, *c = b + stride, *d = c + stride;
            int64_t i = 0;
            for (; i + 4 <= width; i += 4, to += 4 * panel) {
                const Floats<4> rows[4] = {four(a + i), four(b + i), four(c + i), four(d + i)};
                const Floats<4> ab_low = FV_PICK(rows[0], rows[1], 0, 1, 0, 1);
                const Floats<4> ab_high = FV_PICK(rows[0], rows[1], 2, 3, 2, 3);
                const Floats<4> cd_low = FV_PICK(rows[2], rows[3], 0, 1, 0, 1);
                const Floats<4> cd_high = FV_PICK(rows[2], rows[3], 2, 3, 2, 3);
                store<4>(FV_PICK(ab_low, cd_low, 0, 2, 0, 2), to);
                store<4>(FV_PICK(ab_low, cd_low, 1, 3, 1, 3), to + panel);
                store<4>(FV_PICK(ab_high, cd_high, 0, 2, 0, 2), to + 2 * panel);
                store<4>(FV_PICK(ab_high, cd_high, 1, 3, 1, 3), to + 3 * panel);
            }
            for (; i < width; ++i, to += panel) {
                store<4>(Floats<4>{to_float(a[i]), to_float(b[i]), to_float(c[i]), to_float(d[i])}, to);
            }
        }
    };
};

#undef FV_PICK

}  // namespace fv
