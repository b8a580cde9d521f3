// Small products of float32 matrices whose sums stay in registers, and the packing that they read.
#pragma once

#include <algorithm>

#include "dtypes.h"
#include "lanes.h"

namespace fv {

// One operand of a product: element (row, k) is at a[row * by_row + k * by_k].
struct Left {
    const float* a;
    int64_t by_row, by_k;
};

// c[r, :] (+)= sum over k of left(r, k) * b[k, :], for R rows and V vectors.
template <int W, int R, int V>
struct Tile {
    static FV_INLINE void run(Left left, const float* b, int64_t ldb, int64_t depth, bool add, float* c,
                              int64_t ldc) {
        Floats<W> sum[R][V];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
            for (int i = 0; i < V; ++i) sum[r][i] = add ? load<W>(c + r * ldc + i * W) : Floats<W>{};
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
            for (int i = 0; i < V; ++i) store<W>(sum[r][i], c + r * ldc + i * W);
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

// left (rows, depth) times columns packed by pack_columns.
template <int W>
FV_INLINE void product_columns(Left left, const float* packed, int64_t rows, int64_t depth, int64_t columns,
                               float* c, int64_t ldc) {
    constexpr int64_t panel = Lanes<W>::panel;
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

// x (count, width), rows `stride` apart → its transpose in panels of `Lanes<W>::panel` columns, each (width,
// panel); zeros behind the last column up to a whole vector.
template <int W>
struct PackColumns {
    template <class T>
    struct Of {
        static FV_INLINE void run(const T* x, int64_t stride, int64_t width, int64_t count, float* out) {
            constexpr int64_t panel = Lanes<W>::panel;
            for (int64_t first = 0; first < count; first += panel, out += panel * width) {
                const int64_t real = std::min(count - first, panel), whole = round_up(real, W);
                const T* from = x + first * stride;
                for (int64_t column = 0; column < whole; column += 4) {
                    // Four rows at a time: their elements side by side make one 16-byte store.
                    if (column + 4 <= real) {
                        const T *a = from + column * stride, *b = a + stride, *c = b + stride,
                                *d = c + stride;
                        for (int64_t i = 0; i < width; ++i) {
                            float* to = out + i * panel + column;
                            const Floats<4> four{to_float(a[i]), to_float(b[i]), to_float(c[i]),
                                                 to_float(d[i])};
                            store<4>(four, to);
                        }
                        continue;
                    }
                    for (int64_t i = 0; i < width; ++i) store<4>(Floats<4>{}, out + i * panel + column);
                    for (int64_t j = column; j < real; ++j) {
                        for (int64_t i = 0; i < width; ++i)
                            out[i * panel + j] = to_float(from[j * stride + i]);
                    }
                }
            }
        }
    };
};

}  // namespace fv
