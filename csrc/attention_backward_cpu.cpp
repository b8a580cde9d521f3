// Attention over packed sequences, backward: keys block by block, all queries that see them against each, so
// that scores are computed once for all three gradients (Dao et al. 2022, algorithm 4), in float32. One
// thread has a whole sequence of one key head: sums are made in one order, whatever the number of threads.
#include <cmath>
#include <limits>

#include "attention.h"

namespace fv {
namespace {

struct Arriving {
    const void* out;  // (rows_q, heads, width), as the forward left it
    const float* lse;
    const void* grad_out;
    const float* grad_lse;  // may be null
};

struct Gradients {
    void *q, *k, *v;
};

// What Weights needs of a row: log2(e) * lse as the sum of two floats (an error there is an error of every
// weight of the row), and its sum of out * grad_out, less the gradient of lse.
struct Stats {
    float lse, lse_rest, delta;
};

template <class T>
struct Statistics {
    static FV_INLINE void run(const T* grad, int64_t stride, int64_t width, const void* other,
                              const float* lse, const float* grad_lse, int64_t rows, Stats* stats) {
        const T* out = static_cast<const T*>(other);
        for (int64_t r = 0; r < rows; ++r, grad += stride, out += stride) {
            float lanes[16] = {};
            int64_t i = 0;
            for (; i + 16 <= width; i += 16) {
                for (int64_t j = 0; j < 16; ++j) lanes[j] += to_float(out[i + j]) * to_float(grad[i + j]);
            }
            float sum = grad_lse != nullptr ? -grad_lse[r] : 0.0f;
            for (; i < width; ++i) sum += to_float(out[i]) * to_float(grad[i]);
            for (float x : lanes) sum += x;
            // Rows that saw nothing have lse = -inf; 2^(score - inf) gives them the weights 0.
            const double whole =
                lse[r] == -std::numeric_limits<float>::infinity() ? -lse[r] : lse[r] * log2_e;
            const float most = static_cast<float>(whole);
            stats[r] = {most, std::isfinite(most) ? static_cast<float>(whole - most) : 0.0f, sum};
        }
    }
};

// Turns scores into weights p and the gradients of p into those of the scores: p * (dp - delta). Row r sees
// `seen` + r * `more` keys of this block.
template <int W>
struct Weights {
    static FV_INLINE void run(float* p, float* dp, const Stats* stats, int64_t rows, int64_t columns,
                              int64_t seen, int64_t more, int64_t keys) {
        for (int64_t r = 0; r < rows; ++r, p += block_k, dp += block_k, ++stats) {
            for (int64_t j = 0; j < columns; j += W) {
                const Floats<W> weight = exp2<W>((load<W>(p + j) - stats->lse) - stats->lse_rest);
                store<W>(weight, p + j);
                store<W>(weight * (load<W>(dp + j) - stats->delta), dp + j);
            }
            for (int64_t j = std::clamp<int64_t>(seen + r * more, 0, keys); j < columns; ++j) {
                p[j] = dp[j] = 0.0f;
            }
        }
    }
};

// sums (count, padded) times `scale` to the rows of a gradient.
template <class T>
struct Unpack {
    static FV_INLINE void run(const T* rows, int64_t stride, int64_t width, const float* sums, int64_t count,
                              int64_t padded, float scale) {
        T* to = const_cast<T*>(rows);
        for (int64_t r = 0; r < count; ++r, sums += padded, to += stride) {
            for (int64_t i = 0; i < width; ++i) from_float(sums[i] * scale, to + i);
        }
    }
};

// Floats that one thread works in, for sequences of up to `rows` queries.
int64_t backward_scratch(const fv_attention& g, int64_t rows) {
    const int64_t padded = round_up(g.width, 16), group = g.heads / g.kv_heads;
    return group * rows * (padded + 3) + block_k * (2 * g.width + 3 * padded) +
           block_q * (g.width + 2 * padded) + 2 * block_q * block_k + 256;
}

// One sequence of one key head, with every query head that shares it.
template <int W>
struct Backward {
    static FV_INLINE void run(const fv_attention* g, const Piece* piece, int64_t kv_head,
                              const Arriving* arriving, const Gradients* gradients, float* scratch) {
        const int64_t width = g->width, padded = round_up(width, W), group = g->heads / g->kv_heads;
        const int64_t rows_q = piece->rows_q, rows_k = piece->rows_k, row = g->heads * width;
        auto take = [&scratch](int64_t floats) {
            float* taken = scratch;
            scratch += round_up(floats, 16);
            return taken;
        };
        float* const grad_q = take(group * rows_q * padded);
        Stats* const stats = reinterpret_cast<Stats*>(take(group * rows_q * 3));
        float* const keys_across = take(block_k * width);
        float* const values_across = take(block_k * width);
        float* const keys = take(block_k * padded);
        float* const grad_k = take(2 * block_k * padded);
        float* const grad_v = grad_k + block_k * padded;
        float* const queries = take(block_q * padded);
        float* const grads = take(block_q * padded);
        float* const p = take(block_q * block_k);
        float* const dp = take(block_q * block_k);
        std::fill(grad_q, grad_q + group * rows_q * padded, 0.0f);

        auto rows_of = [&](const void* x, int64_t head) {
            return Rows::at(*g, x, piece->first_q * row + head * width, row);
        };
        const Rows k =
            Rows::at(*g, g->k, piece->first_k * g->k_stride[0] + kv_head * g->k_stride[1], g->k_stride[0]);
        const Rows v =
            Rows::at(*g, g->v, piece->first_k * g->v_stride[0] + kv_head * g->v_stride[1], g->v_stride[0]);
        for (int64_t h = 0; h < group; ++h) {
            const int64_t head = kv_head * group + h, at = head * g->rows_q + piece->first_q;
            const float* grad_lse = arriving->grad_lse == nullptr ? nullptr : arriving->grad_lse + at;
            on_rows<W, Statistics>(rows_of(arriving->grad_out, head), 0, rows_of(arriving->out, head).x,
                                   arriving->lse + at, grad_lse, rows_q, stats + h * rows_q);
        }
        const float scale = static_cast<float>(g->scale), score_scale = static_cast<float>(g->scale * log2_e);
        for (int64_t j = 0; j < rows_k; j += block_k) {
            const int64_t count = std::min(block_k, rows_k - j), columns = round_up(count, W);
            const int64_t panel = std::min(Lanes<W>::panel, columns);
            on_rows<W, PackColumns<W>::template Of>(k, j, count, panel, keys_across);
            on_rows<W, PackColumns<W>::template Of>(v, j, count, panel, values_across);
            on_rows<W, PackRows>(k, j, count, padded, 1.0f, keys);
            std::fill(grad_k, grad_k + 2 * block_k * padded, 0.0f);
            // The first query that sees key j.
            const int64_t from = g->causal ? std::clamp<int64_t>(j + rows_q - rows_k, 0, rows_q) : 0;
            for (int64_t h = 0; h < group; ++h) {
                const int64_t head = kv_head * group + h;
                const Rows q = Rows::at(*g, g->q, piece->first_q * g->q_stride[0] + head * g->q_stride[1],
                                        g->q_stride[0]);
                const Rows grad_out = rows_of(arriving->grad_out, head);
                for (int64_t i = from; i < rows_q; i += block_q) {
                    const int64_t some = std::min(block_q, rows_q - i);
                    on_rows<W, PackRows>(q, i, some, padded, score_scale, queries);
                    on_rows<W, PackRows>(grad_out, i, some, padded, 1.0f, grads);
                    product_columns<W>({queries, padded, 1}, keys_across, some, width, columns, p, block_k);
                    product_columns<W>({grads, padded, 1}, values_across, some, width, columns, dp, block_k);
                    const int64_t seen = g->causal ? i + 1 + rows_k - rows_q - j : count;
                    call<W, Weights<W>>(p, dp, stats + h * rows_q + i, some, columns, seen, g->causal, count);
                    add_product_rows<W>({p, 1, block_k}, grads, count, some, padded, grad_v);
                    add_product_rows<W>({dp, 1, block_k}, queries, count, some, padded, grad_k);
                    add_product_rows<W>({dp, block_k, 1}, keys, some, count, padded,
                                        grad_q + (h * rows_q + i) * padded);
                }
            }
            const int64_t stride = g->kv_heads * width,
                          first = (piece->first_k + j) * stride + kv_head * width;
            // The queries carry scale * log2(e).
            on_rows<W, Unpack>(Rows::at(*g, gradients->k, first, stride), 0, grad_k, count, padded,
                               static_cast<float>(ln_2));
            on_rows<W, Unpack>(Rows::at(*g, gradients->v, first, stride), 0, grad_v, count, padded, 1.0f);
        }
        for (int64_t h = 0; h < group; ++h) {
            on_rows<W, Unpack>(rows_of(gradients->q, kv_head * group + h), 0, grad_q + h * rows_q * padded,
                               rows_q, padded, scale);
        }
    }
};

void clear(const fv_attention& g, void* gradient, int64_t used, int64_t rows, int64_t heads) {
    const int64_t row = heads * g.width * (g.dtype == dtype_f32 ? 4 : 2);
    std::memset(static_cast<char*>(gradient) + used * row, 0, static_cast<size_t>((rows - used) * row));
}

}  // namespace
}  // namespace fv

// Gradients of q, k and v, contiguous, in g's dtype; 0 for rows past the last sequence. `out` and `grad_out`
// are contiguous in g's dtype, `lse` and `grad_lse` (null: none) are (heads, rows_q). cu_q and cu_k must have
// passed fv_cu_seqlens.
FV_API void fv_attention_backward(const fv_attention* g, const void* out, const float* lse,
                                  const void* grad_out, const float* grad_lse, void* grad_q, void* grad_k,
                                  void* grad_v) {
    const std::vector<fv::Piece> work = fv::pieces(*g, std::numeric_limits<int64_t>::max());
    double flops = 0;
    int64_t longest = 0;
    for (const fv::Piece& p : work) {
        flops += 10.0 * static_cast<double>(g->heads * g->width) * static_cast<double>(p.rows_q * p.rows_k);
        longest = std::max(longest, p.rows_q);
    }
    const fv::Arriving arriving{out, lse, grad_out, grad_lse};
    const fv::Gradients gradients{grad_q, grad_k, grad_v};
    const int64_t tasks = static_cast<int64_t>(work.size()) * g->kv_heads;
    fv::share(tasks, flops, fv::backward_scratch(*g, longest), [&](int64_t task, float* scratch) {
        const fv::Piece* piece = &work[static_cast<size_t>(task / g->kv_heads)];
        fv::dispatch_lanes<fv::Backward>(g, piece, task % g->kv_heads, &arriving, &gradients, scratch);
    });
    fv::clear(*g, grad_q, g->cu_q[g->sequences], g->rows_q, g->heads);
    fv::clear(*g, grad_k, g->cu_k[g->sequences], g->rows_k, g->kv_heads);
    fv::clear(*g, grad_v, g->cu_k[g->sequences], g->rows_k, g->kv_heads);
}
