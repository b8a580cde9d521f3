// The geometry that the patch gather and its gradient share. Every field has eight bytes, so a
// ctypes.Structure needs no padding rules.
#pragma once

#include <cstdint>

typedef struct {
    const void* video;   // element (0, 0, 0, 0, 0)
    int64_t dtype;       // 0 f32, 2 f16, 3 bf16, 4 uint8
    int64_t stride[5];   // of clip, channel, frame, row, column; in elements
    int64_t channels;    // C
    int64_t kernel[3];   // pixels of a tubelet along t, h, w
    int64_t step[3];     // pixels from one tubelet to the next
    int64_t offset[3];   // pixels before the first one
    int64_t grid[3];     // tubelets along each axis; offset + (grid - 1) * step + kernel fits the video
    const float* scale;  // (C): value = x * scale[c] + shift[c]
    const float* shift;  // (C)
} fv_tubelets;

namespace fv {

inline int64_t tokens_per_clip(const fv_tubelets& g) { return g.grid[0] * g.grid[1] * g.grid[2]; }

inline int64_t tubelet_pixels(const fv_tubelets& g) { return g.kernel[0] * g.kernel[1] * g.kernel[2]; }

// Where tubelet `id` of one clip starts along axis 0 (frames), 1 (rows) or 2 (columns).
inline int64_t tubelet_start(const fv_tubelets& g, int64_t id, int axis) {
    if (axis == 2) return g.offset[2] + id % g.grid[2] * g.step[2];
    if (axis == 1) return g.offset[1] + id / g.grid[2] % g.grid[1] * g.step[1];
    return g.offset[0] + id / (g.grid[2] * g.grid[1]) * g.step[0];
}

// Element offset of tubelet `id`, counted over all clips.
inline int64_t tubelet_offset(const fv_tubelets& g, int64_t id) {
    const int64_t plane = g.grid[1] * g.grid[2], tokens = g.grid[0] * plane;
    const int64_t clip = id / tokens, place = id - clip * tokens;
    const int64_t t = place / plane, rest = place - t * plane;
    const int64_t h = rest / g.grid[2], w = rest - h * g.grid[2];
    return clip * g.stride[0] + (g.offset[0] + t * g.step[0]) * g.stride[2] +
           (g.offset[1] + h * g.step[1]) * g.stride[3] + (g.offset[2] + w * g.step[2]) * g.stride[4];
}

// Row r of `out` (rows, C*t*h*w) is tubelet ids[first + r] of `clips` clips, or first + r where `ids` is
// null, in the order c, t, h, w; value = x * scale[c] + shift[c]. An id outside 0..clips*N-1 makes a row of
// NaN.
void gather_patches(const fv_tubelets* g, const int64_t* ids, int64_t first, int64_t rows, int64_t clips,
                    float* out);

}  // namespace fv
