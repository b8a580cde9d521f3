// The embedding of kept tubelets: patches gathered block by block and multiplied while they are in the cache,
// on top of bias and position; in float32 whatever the dtype.
#include "tiles.h"
#include "tubelets.h"

namespace fv {
namespace {

// Terms that are added up in registers before they meet the sum in memory: more would lose precision, as they
// are added one after the other, and a panel of the weight would no longer stay in the first cache.
constexpr int64_t block_depth = 384;
// Floats of a block of patches: half of a core's second cache, beside its rows of the result.
constexpr int64_t block_floats = 96 * 1024;

struct AddRows {
    static FV_INLINE void run(const float* FV_RESTRICT a, const float* FV_RESTRICT b, int64_t width,
                              float* FV_RESTRICT out) {
        for (int64_t i = 0; i < width; ++i) out[i] = a[i] + b[i];
    }
};

template <class T>
struct Narrow {
    static FV_INLINE void run(const float* x, int64_t count, T* FV_RESTRICT out) {
        for (int64_t i = 0; i < count; ++i) from_float(x[i], out + i);
    }
};

struct Embedding {
    const fv_tubelets* tubelets;
    const int64_t* ids;
    int64_t clips;
    const void* weight;
    int64_t dtype, columns, width;  // columns: pixels of a tubelet; width: D
    const float *bias, *pos;
    void* out;
};

// Columns of the weight's transpose from `first` on, a panel of them.
template <int W>
struct PackPanel {
    static FV_INLINE void run(const Embedding* e, int64_t first, float* packed) {
        const int64_t count = std::min(e->width - first, Lanes<W>::panel);
        const int64_t offset = first * e->columns;
        switch (e->dtype) {
            case dtype_f32:
                return call<W, typename PackColumns<W>::template Of<float>>(
                    static_cast<const float*>(e->weight) + offset, e->columns, e->columns, count,
                    Lanes<W>::panel, packed);
            case dtype_f16:
                return call<W, typename PackColumns<W>::template Of<Half>>(
                    static_cast<const Half*>(e->weight) + offset, e->columns, e->columns, count,
                    Lanes<W>::panel, packed);
            case dtype_bf16:
                return call<W, typename PackColumns<W>::template Of<BFloat16>>(
                    static_cast<const BFloat16*>(e->weight) + offset, e->columns, e->columns, count,
                    Lanes<W>::panel, packed);
        }
    }
};

// Rows first..first+rows of the result. The last panel's sums have columns that do not exist: `sums` is as
// wide as whole vectors.
template <int W>
struct EmbedRows {
    static FV_INLINE void run(const Embedding* e, const float* packed, int64_t first, int64_t rows,
                              float* scratch) {
        constexpr int64_t panel = Lanes<W>::panel;
        const int64_t width = e->width, columns = e->columns, padded = round_up(width, W);
        const int64_t tokens = tokens_per_clip(*e->tubelets);
        float* const patches = scratch;
        const bool in_place = e->dtype == dtype_f32 && padded == width;
        float* const sums =
            in_place ? static_cast<float*>(e->out) + first * width : patches + round_up(rows * columns, 16);
        gather_patches(e->tubelets, e->ids, first, rows, e->clips, patches);
        for (int64_t row = 0; row < rows; ++row) {
            float* to = sums + row * padded;
            const float* place = nullptr;
            if (e->pos != nullptr) {
                const int64_t token = (e->ids != nullptr ? e->ids[first + row] : first + row) % tokens;
                place = e->pos + (token < 0 ? token + tokens : token) * width;
            }
            if (e->bias != nullptr && place != nullptr) {
                call<W, AddRows>(e->bias, place, width, to);
            } else if (e->bias != nullptr || place != nullptr) {
                std::copy_n(e->bias != nullptr ? e->bias : place, width, to);
            } else {
                std::fill_n(to, width, 0.0f);
            }
            std::fill(to + width, to + padded, 0.0f);
        }
        for (int64_t k = 0; k < columns; k += block_depth) {
            const int64_t depth = std::min(block_depth, columns - k);
            product<W>({patches + k, columns, 1}, packed + k * panel, panel, Lanes<W>::vectors,
                       panel * columns, rows, depth, padded, true, sums, padded);
        }
        if (in_place) return;
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t at = (first + row) * width;
            const float* from = sums + row * padded;
            switch (e->dtype) {
                case dtype_f32:
                    call<W, Narrow<float>>(from, width, static_cast<float*>(e->out) + at);
                    break;
                case dtype_f16:
                    call<W, Narrow<Half>>(from, width, static_cast<Half*>(e->out) + at);
                    break;
                case dtype_bf16:
                    call<W, Narrow<BFloat16>>(from, width, static_cast<BFloat16*>(e->out) + at);
            }
        }
    }
};

template <int W>
struct Embed {
    static FV_INLINE void run(const Embedding* e, int64_t rows, int64_t threads) {
        constexpr int64_t panel = Lanes<W>::panel;
        const int64_t panels = (e->width + panel - 1) / panel, columns = e->columns;
        Scratch packed(panels * panel * columns);
        float* const weight = packed.take(panels * panel * columns);
        parallel_for(0, panels, rows_per_thread(panel * columns * 4), [&](int64_t begin, int64_t end) {
            for (int64_t p = begin; p < end; ++p) {
                call<W, PackPanel<W>>(e, p * panel, weight + p * panel * columns);
            }
        });
        // Blocks as tall as the cache allows, but some for each thread; tiles have six rows.
        int64_t step = std::min(block_floats / columns, rows / (8 * threads));
        step = std::clamp<int64_t>(step / 6 * 6, 6, 96);
        const int64_t padded = round_up(e->width, W);
        const double flops = 2.0 * static_cast<double>(rows) * static_cast<double>(columns * e->width);
        share((rows + step - 1) / step, flops, round_up(step * columns, 16) + step * padded,
              [&](int64_t block, float* scratch) {
                  const int64_t first = block * step;
                  call<W, EmbedRows<W>>(e, weight, first, std::min(step, rows - first), scratch);
              });
    }
};

}  // namespace
}  // namespace fv

// out[r] = bias + pos[id mod N] + weight · patch, id = ids[r] or r where `ids` is null, the patch as in
// gather_patches. `weight` (D, C*t*h*w) and `out` (rows, D) are contiguous, of `dtype` (0 f32, 2 f16, 3
// bf16); `bias` (D) and `pos` (N, D) are float32, contiguous, and may be null.
FV_API void fv_embed(const fv_tubelets* tubelets, const int64_t* ids, int64_t rows, int64_t clips,
                     const void* weight, int64_t dtype, int64_t width, const float* bias, const float* pos,
                     int64_t threads, void* out) {
    const int64_t columns = tubelets->channels * fv::tubelet_pixels(*tubelets);
    if (rows <= 0 || width <= 0 || columns <= 0) return;
    const fv::Embedding e{tubelets, ids, clips, weight, dtype, columns, width, bias, pos, out};
    fv::dispatch_lanes<fv::Embed>(&e, rows, std::max<int64_t>(threads, 1));
}
