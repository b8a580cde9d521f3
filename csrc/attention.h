// What the forward and the backward of attention share: the arguments, small matrix products held in
// registers, packing, 2^x, and the order in which threads take sequences and heads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <type_traits>
#include <vector>

#include "dtypes.h"
#include "parallel.h"
#include "simd.h"

// Vectors only pass between inlined functions, so no caller can disagree about how.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

typedef struct {
    int64_t dtype;  // 0 f32, 2 f16, 3 bf16
    const void* q;  // (rows_q, heads, width)
    const void* k;  // (rows_k, kv_heads, width)
    const void* v;
    int64_t q_stride[2];  // of row and head, in elements; a row of one head is contiguous
    int64_t k_stride[2];
    int64_t v_stride[2];
    const int32_t* cu_q;  // (sequences + 1)
    const int32_t* cu_k;
    int64_t sequences;
    int64_t rows_q;
    int64_t rows_k;
    int64_t heads;
    int64_t kv_heads;
    int64_t width;
    int64_t causal;
    double scale;
} fv_attention;

namespace fv {

// Queries and keys of a block of scores: scores, a block of K and one of V together fill a core's second
// cache to a quarter, and a block of V the first.
constexpr int64_t block_q = 96, block_k = 128;
constexpr double log2_e = 1.4426950408889634, ln_2 = 0.6931471805599453;

template <int W>
struct Lanes {
    typedef float Floats __attribute__((vector_size(W * 4)));
    typedef int32_t Ints __attribute__((vector_size(W * 4)));
    // Vectors of a row of a tile: with six rows all sums stay in the 32 (or 16) registers.
    static constexpr int vectors = W == 16 ? 4 : 2;
    static constexpr int64_t panel = W * vectors;
};

template <int W>
using Floats = typename Lanes<W>::Floats;

template <int W>
FV_INLINE Floats<W> load(const float* p) {
    Floats<W> x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

template <int W>
FV_INLINE void store(const Floats<W>& x, float* p) {
    std::memcpy(p, &x, sizeof x);
}

// x in every lane; -0 becomes 0.
template <int W>
FV_INLINE Floats<W> all(float x) {
    return Floats<W>{} + x;
}

FV_INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// 2^x, within 2 units in the last place; 0 below -126, NaN of NaN. x <= 127.
template <int W>
FV_INLINE Floats<W> exp2(const Floats<W>& x) {
    using I = typename Lanes<W>::Ints;
    // Added to 1.5 * 2^23, a float keeps its whole part in its last bits.
    const Floats<W> shifted = x + 12582912.0f;
    const Floats<W> f = x - (shifted - 12582912.0f);
    // Near-minimax on [-1/2, 1/2], relative error 2e-9, fitted by Lawson's iteration.
    Floats<W> p = f * 1.535336188985062e-4f + 1.3398874422366376e-3f;
    p = p * f + 9.618437357817956e-3f;
    p = p * f + 5.550332471099857e-2f;
    p = p * f + 2.4022647913626521e-1f;
    p = p * f + 6.931472028550826e-1f;
    p = p * f + 1.0f;
    const I power = ((I)shifted + 127) << 23;
    p *= (Floats<W>)power;
    return x < -126.0f ? Floats<W>{} : p;
}

template <int W>
FV_INLINE float largest(const Floats<W>& x) {
    if constexpr (W == 4) {
        const float a = x[0] > x[1] ? x[0] : x[1], b = x[2] > x[3] ? x[2] : x[3];
        return a > b ? a : b;
    } else {
        Floats<W / 2> half[2];
        std::memcpy(half, &x, sizeof x);
        return largest<W / 2>(half[0] > half[1] ? half[0] : half[1]);
    }
}

template <int W>
FV_INLINE float total(const Floats<W>& x) {
    if constexpr (W == 4) {
        return (x[0] + x[1]) + (x[2] + x[3]);
    } else {
        Floats<W / 2> half[2];
        std::memcpy(half, &x, sizeof x);
        return total<W / 2>(half[0] + half[1]);
    }
}

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

// Some rows of one head of q, k, v or a gradient.
struct Rows {
    int64_t dtype;
    const void* x;   // the first row
    int64_t stride;  // between rows, in elements
    int64_t width;

    // Row 0 at element `offset` of `base`.
    static FV_INLINE Rows at(const fv_attention& g, const void* base, int64_t offset, int64_t stride) {
        const int64_t bytes = g.dtype == dtype_f32 ? 4 : 2;
        return {g.dtype, static_cast<const char*>(base) + offset * bytes, stride, g.width};
    }
};

// The step of `dtype`, called on the rows from `first` on.
template <int W, template <class> class Step, class... Args>
FV_INLINE void on_rows(const Rows& rows, int64_t first, Args... args) {
    const int64_t offset = first * rows.stride;
    switch (rows.dtype) {
        case dtype_f32:
            return call<W, Step<float>>(static_cast<const float*>(rows.x) + offset, rows.stride, rows.width,
                                        args...);
        case dtype_f16:
            return call<W, Step<Half>>(static_cast<const Half*>(rows.x) + offset, rows.stride, rows.width,
                                       args...);
        case dtype_bf16:
            return call<W, Step<BFloat16>>(static_cast<const BFloat16*>(rows.x) + offset, rows.stride,
                                           rows.width, args...);
    }
}

// Floats at an alignment of a cache line, given out in pieces.
class Scratch {
  public:
    explicit Scratch(int64_t floats)
        : data_(static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(round_up(floats, 16)) * 4))) {
        if (data_ == nullptr) pool_failed();
        next_ = data_;
    }
    ~Scratch() { std::free(data_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    float* take(int64_t floats) {
        float* taken = next_;
        next_ += round_up(floats, 16);
        return taken;
    }

  private:
    float *data_, *next_;
};

// A range of one sequence's queries and all of its keys.
struct Piece {
    int64_t first_q, rows_q;  // the sequence's
    int64_t first_k, rows_k;
    int64_t begin, end;  // queries of this piece, counted in the sequence
};

// The sequences in pieces of at most `longest` queries, most work first so that no thread is left with a long
// one at the end.
inline std::vector<Piece> pieces(const fv_attention& g, int64_t longest) {
    std::vector<Piece> found;
    for (int64_t s = 0; s < g.sequences; ++s) {
        const int64_t first_q = g.cu_q[s], first_k = g.cu_k[s];
        const int64_t rows_q = g.cu_q[s + 1] - first_q, rows_k = g.cu_k[s + 1] - first_k;
        // From the end: under causality the last queries see most.
        for (int64_t end = rows_q; end > 0; end -= longest) {
            found.push_back({first_q, rows_q, first_k, rows_k, std::max<int64_t>(end - longest, 0), end});
        }
        if (rows_q == 0 && rows_k > 0) found.push_back({first_q, 0, first_k, rows_k, 0, 0});
    }
    auto work = [](const Piece& p) { return (p.end - p.begin) * p.rows_k; };
    auto heavier = [&](const Piece& a, const Piece& b) { return work(a) > work(b); };
    if (!std::is_sorted(found.begin(), found.end(), heavier)) {
        std::stable_sort(found.begin(), found.end(), heavier);
    }
    return found;
}

// Calls task(i, scratch) once for each i in 0..tasks-1; threads take the next one as they get free, which
// changes who computes a task but not what. `scratch_floats` is what a thread gets to work in.
template <class Task>
void share(int64_t tasks, double flops, int64_t scratch_floats, const Task& task) {
    // About 20 microseconds of work: below that a thread costs more than it brings.
    constexpr double flops_per_thread = 2e6;
    const double threads = std::max(flops / flops_per_thread, 1.0);
    const int64_t grain = std::max<int64_t>(static_cast<int64_t>(static_cast<double>(tasks) / threads), 1);
    std::atomic<int64_t> next{0};
    parallel_for(0, tasks, grain, [&](int64_t, int64_t) {
        int64_t i = next++;
        if (i >= tasks) return;
        Scratch scratch(scratch_floats);
        float* begin = scratch.take(0);
        for (; i < tasks; i = next++) task(i, begin);
    });
}

// Keys that query `row` of a sequence sees.
FV_INLINE int64_t seen_by(const fv_attention& g, const Piece& p, int64_t row) {
    if (!g.causal) return p.rows_k;
    return std::clamp<int64_t>(row + 1 + p.rows_k - p.rows_q, 0, p.rows_k);
}

}  // namespace fv
