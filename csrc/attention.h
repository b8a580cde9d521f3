// What the forward and the backward of attention share: the arguments, the pieces of the work, and the order
// in which threads take them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dtypes.h"
#include "parallel.h"
#include "share.h"
#include "tiles.h"

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

// Keys that query `row` of a sequence sees.
FV_INLINE int64_t seen_by(const fv_attention& g, const Piece& p, int64_t row) {
    if (!g.causal) return p.rows_k;
    return std::clamp<int64_t>(row + 1 + p.rows_k - p.rows_q, 0, p.rows_k);
}

}  // namespace fv
