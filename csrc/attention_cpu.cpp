// Attention over packed sequences, forward: blocks of queries against blocks of keys with a running maximum
// and sum (online softmax: Milakov and Gimelshein 2018; Dao et al. 2022), in float32.
#include <cmath>
#include <limits>

#include "attention.h"

namespace fv {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

// Queries that share one packing of the keys: as many as stay in a core's second cache with their sums.
// Packing a key then costs a thirtieth of using it.
int64_t piece_rows(int64_t width) { return block_q * std::max<int64_t>(768 / width, 1); }

// Where a piece stands: a row of `out` (padded) is the sum so far, relative to 2^top; `sum` has W partial
// sums.
struct Running {
    float *out, *top, *sum;
};

// Turns scores (rows, columns) into weights 2^(score - top) and brings the rows of `now` to the new top. Row
// r sees `seen` + r * `more` keys of this block.
template <int W>
struct Softmax {
    static FV_INLINE void run(float* scores, int64_t rows, int64_t columns, int64_t seen, int64_t more,
                              int64_t keys, int64_t padded, Running now) {
        for (int64_t r = 0; r < rows; ++r, scores += block_k, now.sum += W, now.out += padded, ++now.top) {
            for (int64_t j = std::clamp<int64_t>(seen + r * more, 0, keys); j < columns; ++j)
                scores[j] = -infinity;
            Floats<W> high = all<W>(*now.top);
            for (int64_t j = 0; j < columns; j += W) {
                const Floats<W> x = load<W>(scores + j);
                high = x > high ? x : high;
            }
            const float top = largest<W>(high);
            // Where nothing was seen yet any finite number serves: every weight is 2^-inf.
            const float base = top == -infinity ? 0.0f : top;
            Floats<W> sum = load<W>(now.sum);
            if (top != *now.top) {
                const Floats<W> fade = exp2<W>(all<W>(*now.top - base));
                *now.top = top;
                sum *= fade;
                for (int64_t i = 0; i < padded; i += W) store<W>(load<W>(now.out + i) * fade, now.out + i);
            }
            for (int64_t j = 0; j < columns; j += W) {
                const Floats<W> p = exp2<W>(load<W>(scores + j) - base);
                store<W>(p, scores + j);
                sum += p;
            }
            store<W>(sum, now.sum);
        }
    }
};

template <int W>
struct Finish {
    template <class T>
    struct Of {
        // `out` is written; it comes as the place of its rows.
        static FV_INLINE void run(const T* out, int64_t stride, int64_t width, Running now, int64_t rows,
                                  int64_t padded, float* lse) {
            T* to = const_cast<T*>(out);
            for (int64_t r = 0; r < rows; ++r, now.out += padded, now.sum += W, to += stride) {
                const float sum = total<W>(load<W>(now.sum));
                const float share = sum == 0.0f ? 0.0f : 1.0f / sum;
                for (int64_t i = 0; i < width; ++i) from_float(now.out[i] * share, to + i);
                // In double: what is lost here, the backward multiplies every weight of the row by.
                const double log2 = static_cast<double>(now.top[r]) + std::log2(static_cast<double>(sum));
                lse[r] = sum == 0.0f ? -infinity : static_cast<float>(log2 * ln_2);
            }
        }
    };
};

// One piece of one head.
template <int W>
struct Forward {
    static FV_INLINE void run(const fv_attention* g, const Piece* piece, int64_t head, float* scratch,
                              void* out, float* lse) {
        const int64_t width = g->width, padded = round_up(width, W),
                      kv_head = head / (g->heads / g->kv_heads);
        const int64_t rows = piece->end - piece->begin, first = piece->first_q + piece->begin;
        float* const queries = scratch;
        float* const keys = queries + round_up(rows * width, 16);
        float* const values = keys + block_k * width;
        float* const scores = values + block_k * padded;
        Running now{scores + block_q * block_k, nullptr, nullptr};
        now.sum = now.out + rows * padded;
        now.top = now.sum + rows * W;
        std::fill(now.out, now.top, 0.0f);
        std::fill(now.top, now.top + rows, -infinity);

        const Rows q = Rows::at(*g, g->q, first * g->q_stride[0] + head * g->q_stride[1], g->q_stride[0]);
        const Rows k =
            Rows::at(*g, g->k, piece->first_k * g->k_stride[0] + kv_head * g->k_stride[1], g->k_stride[0]);
        const Rows v =
            Rows::at(*g, g->v, piece->first_k * g->v_stride[0] + kv_head * g->v_stride[1], g->v_stride[0]);
        on_rows<W, PackRows>(q, 0, rows, width, static_cast<float>(g->scale * log2_e), queries);
        const int64_t last = seen_by(*g, *piece, piece->end - 1);
        for (int64_t j = 0; j < last; j += block_k) {
            const int64_t count = std::min(block_k, piece->rows_k - j), columns = round_up(count, W);
            const int64_t panel = std::min(Lanes<W>::panel, columns);
            on_rows<W, PackColumns<W>::template Of>(k, j, count, panel, keys);
            on_rows<W, PackRows>(v, j, count, padded, 1.0f, values);
            for (int64_t i = 0; i < rows; i += block_q) {
                const int64_t some = std::min(block_q, rows - i);
                if (seen_by(*g, *piece, piece->begin + i + some - 1) <= j) continue;
                const Running here{now.out + i * padded, now.top + i, now.sum + i * W};
                product_columns<W>({queries + i * width, width, 1}, keys, some, width, columns, scores,
                                   block_k);
                // What the first row sees may be negative; under causality it grows by one a row.
                const int64_t seen =
                    g->causal ? piece->begin + i + 1 + piece->rows_k - piece->rows_q - j : count;
                call<W, Softmax<W>>(scores, some, columns, seen, g->causal, count, padded, here);
                add_product_rows<W>({scores, block_k, 1}, values, some, count, padded, here.out);
            }
        }
        const int64_t stride = g->heads * width;
        on_rows<W, Finish<W>::template Of>(Rows::at(*g, out, first * stride + head * width, stride), 0, now,
                                           rows, padded, lse + head * g->rows_q + first);
    }
};

}  // namespace
}  // namespace fv

// out (rows_q, heads, width) in g's dtype and lse (heads, rows_q), natural log; 0 and -inf for queries with
// nothing to attend to and for rows past the last sequence. cu_q and cu_k must have passed fv_cu_seqlens.
FV_API void fv_attention_forward(const fv_attention* g, void* out, float* lse) {
    const std::vector<fv::Piece> work = fv::pieces(*g, fv::piece_rows(g->width));
    double flops = 0;
    int64_t longest = 0;
    for (const fv::Piece& p : work) {
        flops += 4.0 * static_cast<double>(g->heads * g->width) *
                 static_cast<double>((p.end - p.begin) * p.rows_k);
        longest = std::max(longest, p.end - p.begin);
    }
    const int64_t padded = fv::round_up(g->width, 16), tasks = static_cast<int64_t>(work.size()) * g->heads;
    const int64_t scratch = fv::round_up(longest * g->width, 16) + longest * (padded + 17) +
                            fv::block_k * (g->width + padded + fv::block_q);
    fv::share(tasks, flops, scratch, [&](int64_t task, float* begin) {
        const fv::Piece* piece = &work[static_cast<size_t>(task / g->heads)];
        fv::dispatch_lanes<fv::Forward>(g, piece, task % g->heads, begin, out, lse);
    });
    const int64_t used = g->cu_q[g->sequences],
                  row = g->heads * g->width * (g->dtype == fv::dtype_f32 ? 4 : 2);
    std::memset(static_cast<char*>(out) + used * row, 0, static_cast<size_t>((g->rows_q - used) * row));
    for (int64_t h = 0; h < g->heads; ++h) {
        std::fill(lse + h * g->rows_q + used, lse + (h + 1) * g->rows_q, -fv::infinity);
    }
}
