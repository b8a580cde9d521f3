// The gradient of the patch gather with respect to the video.
#include <algorithm>
#include <memory>
#include <new>

#include "parallel.h"
#include "simd.h"
#include "tubelets.h"

namespace fv {
namespace {

struct AddScaled {
    static FV_INLINE void run(const float* FV_RESTRICT grad, int64_t height, int64_t width, float scale,
                              int64_t row_stride, int64_t column_stride, float* FV_RESTRICT out) {
        for (int64_t h = 0; h < height; ++h, grad += width, out += row_stride) {
            if (column_stride == 1) {
                for (int64_t w = 0; w < width; ++w) out[w] += grad[w] * scale;
            } else {
                for (int64_t w = 0; w < width; ++w) out[w * column_stride] += grad[w] * scale;
            }
        }
    }
};

struct Range {
    int64_t begin;
    int64_t end;
};

// For each clip the range of rows that holds all of its ids. Batches are packed clip by clip, so the ranges
// are tight; ids in any other order only make them longer.
void rows_of_clips(const int64_t* ids, int64_t rows, int64_t tokens, int64_t clips, Range* ranges) {
    std::fill(ranges, ranges + clips, Range{rows, 0});
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t id = ids != nullptr ? ids[row] : row;
        if (id < 0 || id >= clips * tokens) continue;
        Range& range = ranges[id / tokens];
        range.begin = std::min(range.begin, row);
        range.end = row + 1;
    }
}

// Adds what clip's `rows` contribute to frames `frames` of one channel, in row order.
void add_patches(const fv_tubelets& g, const int64_t* ids, Range rows, int64_t clip, int64_t channel,
                 Range frames, const float* grad) {
    const int64_t tokens = tokens_per_clip(g), pixels = tubelet_pixels(g);
    const int64_t frame_pixels = g.kernel[1] * g.kernel[2];
    float* plane =
        static_cast<float*>(const_cast<void*>(g.video)) + clip * g.stride[0] + channel * g.stride[1];
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const int64_t id = (ids != nullptr ? ids[row] : row) - clip * tokens;
        if (id < 0 || id >= tokens) continue;
        const int64_t frame = tubelet_start(g, id, 0);
        const int64_t begin = std::max(frame, frames.begin), end = std::min(frame + g.kernel[0], frames.end);
        if (begin >= end) continue;
        float* corner = plane + tubelet_start(g, id, 1) * g.stride[3] + tubelet_start(g, id, 2) * g.stride[4];
        const float* from = grad + (row * g.channels + channel) * pixels;
        for (int64_t f = begin; f < end; ++f) {
            dispatch<AddScaled>(from + (f - frame) * frame_pixels, g.kernel[1], g.kernel[2], g.scale[channel],
                                g.stride[3], g.stride[4], corner + f * g.stride[2]);
        }
    }
}

}  // namespace
}  // namespace fv

// Adds grad_patches (rows, C*t*h*w) * scale[c] to the pixels that fv_patches read; tubelets->video is the
// gradient, float32, zeroed by the caller. Tubelets may overlap: a pixel belongs to one thread and is added
// to in row order, so the result is bitwise the same for any number of threads. Ids outside are skipped.
FV_API void fv_patches_backward(const fv_tubelets* tubelets, const int64_t* ids, int64_t rows, int64_t clips,
                                const float* grad_patches) {
    const fv_tubelets& g = *tubelets;
    const int64_t tokens = fv::tokens_per_clip(g);
    if (rows <= 0 || clips <= 0 || tokens <= 0) return;

    std::unique_ptr<fv::Range[]> ranges(new (std::nothrow) fv::Range[static_cast<size_t>(clips)]);
    if (ranges) fv::rows_of_clips(ids, rows, tokens, clips, ranges.get());

    // With few clips their frames are shared out as well, so that every thread has something.
    const int64_t frames = g.offset[0] + (g.grid[0] - 1) * g.step[0] + g.kernel[0];
    const int64_t planes = clips * g.channels;
    const int64_t parts = std::clamp<int64_t>((32 + planes - 1) / planes, 1, g.grid[0]);
    const int64_t part = (frames + parts - 1) / parts;
    fv::parallel_for(0, planes * parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
            const int64_t clip = item / (g.channels * parts), channel = item / parts % g.channels;
            const fv::Range all{0, rows};
            fv::add_patches(g, ids, ranges ? ranges[static_cast<size_t>(clip)] : all, clip, channel,
                            {item % parts * part, std::min(frames, (item % parts + 1) * part)}, grad_patches);
        }
    });
}
