// Moving rows on a GPU: gather with a fill or NaN, the inverse of ids, rows divided on the way.
#include "device_cuda.h"

namespace fv {
namespace {

// `bits` repeated: the pattern of a NaN, or zero.
template <class T, int V>
FV_DEVICE Pack<T, V> repeated(uint64_t bits) {
    Pack<T, V> pack;
#pragma unroll
    for (int i = 0; i < V; ++i) pack.at[i] = static_cast<T>(bits >> (i % 2 * 32));
    return pack;
}

// out[r] = src[ids[r]]; `fill` (null: `outside`, repeated) where an id lies outside. All in packs of words.
// Every thread holds kRows rows times kColumns packs: wide rows need no second row, narrow ones no second
// pack.
template <class T, int V, int kRows, int kColumns>
__global__ void __launch_bounds__(block_threads, 4)
    move_rows_kernel(const char* __restrict__ src, int64_t src_rows, int64_t stride,
                     const int64_t* __restrict__ ids, int64_t rows, int64_t row_packs,
                     const Pack<T, V>* __restrict__ fill, uint64_t outside, uint64_t nan, Guard guard,
                     Pack<T, V>* __restrict__ out) {
    using Word = Pack<T, V>;
    const bool spoiled = guard.spoiled();
    const Word substitute = repeated<T, V>(spoiled ? nan : outside);
    const bool filled = fill != nullptr && !spoiled;
    const int64_t group = static_cast<int64_t>(blockDim.y) * kRows;
    const int64_t span = static_cast<int64_t>(blockDim.x) * kColumns;
    for (int64_t first = blockIdx.y * group + threadIdx.y; first < rows; first += gridDim.y * group) {
        int64_t source[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            const int64_t row = first + static_cast<int64_t>(r) * blockDim.y;
            source[r] = row < rows ? ids[row] : -1;
            if (spoiled || source[r] >= src_rows) source[r] = -1;
        }
        for (int64_t column = blockIdx.x * span + threadIdx.x; column < row_packs;
             column += gridDim.x * span) {
            Word held[kRows][kColumns];
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                const Word* from =
                    reinterpret_cast<const Word*>(src + (source[r] >= 0 ? source[r] * stride : 0));
#pragma unroll
                for (int c = 0; c < kColumns; ++c) {
                    const int64_t at = column + static_cast<int64_t>(c) * blockDim.x;
                    held[r][c] = substitute;
                    if (at >= row_packs) continue;
                    if (source[r] >= 0) {
                        held[r][c] = from[at];
                    } else if (filled) {
                        held[r][c] = fill[at];
                    }
                }
            }
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                const int64_t row = first + static_cast<int64_t>(r) * blockDim.y;
#pragma unroll
                for (int c = 0; c < kColumns; ++c) {
                    const int64_t at = column + static_cast<int64_t>(c) * blockDim.x;
                    if (row < rows && at < row_packs) out[row * row_packs + at] = held[r][c];
                }
            }
        }
    }
}

// out[r] = src[ids[r]] / max(divisor[ids[r]], 1), divided in float32 (float64); 0 where an id lies outside.
template <class T, int V>
__global__ void __launch_bounds__(block_threads, 3)
    divide_rows_kernel(const T* __restrict__ src, int64_t src_rows, int64_t stride,
                       const int64_t* __restrict__ ids, int64_t rows, int64_t row_packs,
                       const int64_t* __restrict__ divisor, Guard guard, Pack<T, V>* __restrict__ out) {
    using S = typename Sum<T>::type;
    const bool spoiled = guard.spoiled();
    const int64_t span = static_cast<int64_t>(blockDim.x) * loads;
    for (int64_t row = blockIdx.y * static_cast<int64_t>(blockDim.y) + threadIdx.y; row < rows;
         row += gridDim.y * static_cast<int64_t>(blockDim.y)) {
        int64_t source = ids[row];
        if (spoiled || source >= src_rows) source = -1;
        const int64_t count = source >= 0 ? divisor[source] : 1;
        const S over = static_cast<S>(count > 1 ? count : 1), inverse = S{1} / over;
        const S missing = spoiled ? not_a_number<S>() : S{0};
        const Pack<T, V>* from =
            reinterpret_cast<const Pack<T, V>*>(src + (source >= 0 ? source * stride : 0));
        for (int64_t column = blockIdx.x * span + threadIdx.x; column < row_packs;
             column += gridDim.x * span) {
            Pack<T, V> held[loads];
#pragma unroll
            for (int c = 0; c < loads; ++c) {
                const int64_t at = column + static_cast<int64_t>(c) * blockDim.x;
                if (at < row_packs && source >= 0) held[c] = from[at];
            }
#pragma unroll
            for (int c = 0; c < loads; ++c) {
                const int64_t at = column + static_cast<int64_t>(c) * blockDim.x;
                if (at >= row_packs) continue;
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    narrow(source >= 0 ? divided(widen(held[c].at[v]), over, inverse) : missing,
                           &held[c].at[v]);
                }
                out[row * row_packs + at] = held[c];
            }
        }
    }
}

// state[ids[r]] = r; state[size] is set to 0 where an id repeats, or lies outside if that spoils. `state`
// comes filled with -1.
__global__ void __launch_bounds__(block_threads)
    invert_ids_kernel(const int64_t* __restrict__ ids, int64_t rows, int64_t size, int32_t outside_spoils,
                      int64_t* __restrict__ state) {
    const int64_t step =
        static_cast<int64_t>(gridDim.x) * blockDim.x * (static_cast<int64_t>(gridDim.y) * blockDim.y);
    const int64_t block = blockIdx.y * static_cast<int64_t>(gridDim.x) + blockIdx.x;
    const int64_t thread = threadIdx.y * static_cast<int64_t>(blockDim.x) + threadIdx.x;
    for (int64_t row = block * blockDim.x * blockDim.y + thread; row < rows; row += step) {
        const int64_t slot = ids[row];
        bool bad = outside_spoils != 0;
        if (slot >= 0 && slot < size) {
            // The maximum is the same in any order, and what it replaced says whether somebody was here
            // before.
            bad = atomicMax(reinterpret_cast<long long*>(state + slot), static_cast<long long>(row)) >= 0;
        }
        if (bad) state[size] = 0;
    }
}

struct Move {
    const void* src;
    int64_t src_rows;
    int64_t stride;
    const int64_t* ids;
    int64_t rows;
    int64_t row_bytes;
    const void* fill;
    uint64_t outside;
    uint64_t nan;
    Guard guard;
    void* out;
    void* stream;

    template <class T, int V>
    int32_t run() const {
        const int64_t row_packs = row_bytes / static_cast<int64_t>(sizeof(Pack<T, V>));
        const bool wide = row_packs > 32;
        RowLaunch launch(rows, row_packs, wide ? 1 : loads, wide ? loads : 1, stream);
        return launch.run(wide ? move_rows_kernel<T, V, 1, loads> : move_rows_kernel<T, V, loads, 1>,
                          static_cast<const char*>(src), src_rows, stride, ids, rows, row_packs,
                          static_cast<const Pack<T, V>*>(fill), outside, nan, guard,
                          static_cast<Pack<T, V>*>(out));
    }
};

struct Divide {
    const void* src;
    int64_t src_rows;
    int64_t stride;
    const int64_t* ids;
    int64_t rows;
    int64_t width;
    const int64_t* divisor;
    Guard guard;
    void* out;
    void* stream;

    template <class T, int V>
    int32_t run() const {
        RowLaunch launch(rows, width / V, 1, loads, stream);
        return launch.run(divide_rows_kernel<T, V>, static_cast<const T*>(src), src_rows, stride, ids, rows,
                          width / V, divisor, guard, static_cast<Pack<T, V>*>(out));
    }
};

}  // namespace
}  // namespace fv

// out[r] = src[ids[r]]. Where an id lies outside 0..src_rows-1 the row is `fill` (row_bytes; null: `outside`,
// 8 bytes repeated). All rows are `nan`, 8 bytes repeated, if *flag (null: none) is not `clean`. Rows may be
// of any type: they are bytes, an even number of them. `out` is contiguous. Returns the launch's error, 0 for
// none.
FV_API int32_t fv_cuda_gather_rows(const void* src, int64_t src_rows, int64_t src_stride_bytes,
                                   const int64_t* ids, int64_t rows, int64_t row_bytes, const void* fill,
                                   uint64_t outside, uint64_t nan, const int64_t* flag, int64_t clean,
                                   void* out, void* stream) {
    if (rows <= 0 || row_bytes <= 0) return 0;
    const fv::Move move{src,     src_rows, src_stride_bytes, ids, rows,  row_bytes, fill,
                        outside, nan,      {flag, clean},    out, stream};
    switch (
        fv::alignment(fv::address(src), src_stride_bytes, row_bytes, fv::address(fill), fv::address(out))) {
        case 16:
            return move.run<uint32_t, 4>();
        case 8:
            return move.run<uint32_t, 2>();
        case 4:
            return move.run<uint32_t, 1>();
        case 2:
            return move.run<uint16_t, 1>();
    }
    return cudaErrorMisalignedAddress;
}

// out[r] = src[ids[r]] / max(divisor[ids[r]], 1), 0 where an id lies outside; the rest as above. Strides and
// widths are in elements. dtype: 0 f32, 1 f64, 2 f16, 3 bf16.
FV_API int32_t fv_cuda_divide_rows(int32_t dtype, const void* src, int64_t src_rows, int64_t src_stride,
                                   const int64_t* ids, int64_t rows, int64_t width, const int64_t* divisor,
                                   const int64_t* flag, int64_t clean, void* out, void* stream) {
    if (rows <= 0 || width <= 0) return 0;
    const fv::Divide divide{src, src_rows, src_stride, ids, rows, width, divisor, {flag, clean}, out, stream};
    auto aligned = [&](int64_t size) {
        return fv::alignment(fv::address(src), src_stride * size, width * size, fv::address(out));
    };
    switch (dtype) {
        case fv::dtype_f32:
            if (aligned(4) >= 16) return divide.run<float, 4>();
            return aligned(4) >= 8 ? divide.run<float, 2>() : divide.run<float, 1>();
        case fv::dtype_f64:
            return aligned(8) >= 16 ? divide.run<double, 2>() : divide.run<double, 1>();
        case fv::dtype_f16:
            if (aligned(2) >= 16) return divide.run<fv::Half, 8>();
            return aligned(2) >= 8 ? divide.run<fv::Half, 4>() : divide.run<fv::Half, 1>();
        case fv::dtype_bf16:
            if (aligned(2) >= 16) return divide.run<fv::BFloat16, 8>();
            return aligned(2) >= 8 ? divide.run<fv::BFloat16, 4>() : divide.run<fv::BFloat16, 1>();
    }
    return cudaErrorInvalidValue;
}

// state[s] = the row whose id is s, the last of them; -1 where there is none. state[size] is -1, or 0 where
// an id repeats (or, if `outside_spoils`, lies outside 0..size-1).
FV_API int32_t fv_cuda_invert_ids(const int64_t* ids, int64_t rows, int64_t size, int32_t outside_spoils,
                                  int64_t* state, void* stream) {
    const size_t bytes = static_cast<size_t>(size + 1) * sizeof(int64_t);
    const cudaError_t status = cudaMemsetAsync(state, 0xff, bytes, static_cast<cudaStream_t>(stream));
    if (status != cudaSuccess) cudaGetLastError();
    if (status != cudaSuccess || rows <= 0) return static_cast<int32_t>(status);
    fv::RowLaunch launch(fv::ceil_div(rows, fv::block_threads), fv::block_threads, 1, 1, stream);
    return launch.run(fv::invert_ids_kernel, ids, rows, size, outside_spoils, state);
}
