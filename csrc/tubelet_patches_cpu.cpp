// The kept tubelets as rows of normalised pixels.
#include <algorithm>
#include <limits>

#include "dtypes.h"
#include "parallel.h"
#include "simd.h"
#include "tubelets.h"

namespace fv {
namespace {

// Each of the three below copies one tubelet as (c, t, h, w). `Width` > 0 is a kernel width known to the
// compiler, whose inner loop is then a few vector instructions and no tail.

// Pixels of a row side by side: a (B, C, T, H, W) tensor.
template <class T, int Width>
struct Planar {
    static FV_INLINE void run(const fv_tubelets* g, const T* src, float* FV_RESTRICT out) {
        const int64_t width = Width > 0 ? Width : g->kernel[2];
        for (int64_t c = 0; c < g->channels; ++c) {
            const float scale = g->scale[c], shift = g->shift[c];
            for (int64_t t = 0; t < g->kernel[0]; ++t) {
                const T* row = src + c * g->stride[1] + t * g->stride[2];
                for (int64_t h = 0; h < g->kernel[1]; ++h, row += g->stride[3], out += width) {
                    for (int64_t w = 0; w < width; ++w) out[w] = to_float(row[w]) * scale + shift;
                }
            }
        }
    }
};

// Three channels interleaved, as a decoder writes them: a (B, T, H, W, 3) buffer. A row of pixels is read
// once and split three ways.
template <class T, int Width>
struct Interleaved {
    static FV_INLINE void run(const fv_tubelets* g, const T* src, float* FV_RESTRICT out) {
        const int64_t width = Width > 0 ? Width : g->kernel[2];
        const int64_t plane = g->kernel[0] * g->kernel[1] * width;
        const float scale0 = g->scale[0], scale1 = g->scale[1], scale2 = g->scale[2];
        const float shift0 = g->shift[0], shift1 = g->shift[1], shift2 = g->shift[2];
        for (int64_t t = 0; t < g->kernel[0]; ++t) {
            const T* row = src + t * g->stride[2];
            for (int64_t h = 0; h < g->kernel[1]; ++h, row += g->stride[3], out += width) {
                for (int64_t w = 0; w < width; ++w) out[w] = to_float(row[3 * w]) * scale0 + shift0;
                float* FV_RESTRICT out1 = out + plane;
                for (int64_t w = 0; w < width; ++w) out1[w] = to_float(row[3 * w + 1]) * scale1 + shift1;
                float* FV_RESTRICT out2 = out1 + plane;
                for (int64_t w = 0; w < width; ++w) out2[w] = to_float(row[3 * w + 2]) * scale2 + shift2;
            }
        }
    }
};

template <class T>
struct Strided {
    static FV_INLINE void run(const fv_tubelets* g, const T* src, float* FV_RESTRICT out) {
        for (int64_t c = 0; c < g->channels; ++c) {
            const float scale = g->scale[c], shift = g->shift[c];
            for (int64_t t = 0; t < g->kernel[0]; ++t) {
                for (int64_t h = 0; h < g->kernel[1]; ++h, out += g->kernel[2]) {
                    const T* row = src + c * g->stride[1] + t * g->stride[2] + h * g->stride[3];
                    for (int64_t w = 0; w < g->kernel[2]; ++w) {
                        out[w] = to_float(row[w * g->stride[4]]) * scale + shift;
                    }
                }
            }
        }
    }
};

template <class T, class Copy>
struct Rows {
    static FV_INLINE void run(const fv_tubelets* g, const int64_t* ids, int64_t first, int64_t begin,
                              int64_t end, int64_t tubelets, float* out) {
        const int64_t columns = g->channels * tubelet_pixels(*g);
        for (int64_t row = begin; row < end; ++row) {
            const int64_t id = ids != nullptr ? ids[first + row] : first + row;
            float* to = out + row * columns;
            if (id < 0 || id >= tubelets) {
                std::fill(to, to + columns, std::numeric_limits<float>::quiet_NaN());
                continue;
            }
            Copy::run(g, static_cast<const T*>(g->video) + tubelet_offset(*g, id), to);
        }
    }
};

template <class T, template <class, int> class Copy>
void copy_rows(const fv_tubelets* g, const int64_t* ids, int64_t first, int64_t begin, int64_t end,
               int64_t tubelets, float* out) {
    if (g->kernel[2] == 16) {
        dispatch<Rows<T, Copy<T, 16>>>(g, ids, first, begin, end, tubelets, out);
    } else {
        dispatch<Rows<T, Copy<T, 0>>>(g, ids, first, begin, end, tubelets, out);
    }
}

template <class T>
void copy_patches(const fv_tubelets* g, const int64_t* ids, int64_t first, int64_t rows, int64_t tubelets,
                  float* out) {
    if (g->stride[4] == 1) return copy_rows<T, Planar>(g, ids, first, 0, rows, tubelets, out);
    if (g->stride[4] == 3 && g->stride[1] == 1 && g->channels == 3) {
        return copy_rows<T, Interleaved>(g, ids, first, 0, rows, tubelets, out);
    }
    dispatch<Rows<T, Strided<T>>>(g, ids, first, int64_t{0}, rows, tubelets, out);
}

}  // namespace

void gather_patches(const fv_tubelets* g, const int64_t* ids, int64_t first, int64_t rows, int64_t clips,
                    float* out) {
    const int64_t tubelets = clips * tokens_per_clip(*g);
    switch (g->dtype) {
        case dtype_f32:
            return copy_patches<float>(g, ids, first, rows, tubelets, out);
        case dtype_f16:
            return copy_patches<Half>(g, ids, first, rows, tubelets, out);
        case dtype_bf16:
            return copy_patches<BFloat16>(g, ids, first, rows, tubelets, out);
        case dtype_u8:
            return copy_patches<uint8_t>(g, ids, first, rows, tubelets, out);
    }
}

}  // namespace fv

// gather_patches (tubelets.h) on all threads.
FV_API void fv_patches(const fv_tubelets* tubelets, const int64_t* ids, int64_t first, int64_t rows,
                       int64_t clips, float* out) {
    const int64_t columns = tubelets->channels * fv::tubelet_pixels(*tubelets);
    const int64_t grain = fv::rows_per_thread(columns * static_cast<int64_t>(sizeof(float)));
    fv::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
        fv::gather_patches(tubelets, ids, first + begin, end - begin, clips, out + begin * columns);
    });
}
