// Moving rows: gather with a fill, and sums over segments.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "dtypes.h"
#include "parallel.h"
#include "simd.h"

namespace fv {
namespace {

// `Bytes` > 0 is a row size known to the compiler: for a row of one element a call to memcpy is most of it.
template <int64_t Bytes>
void gather(const char* src, int64_t src_rows, int64_t stride, const int64_t* ids, int64_t begin, int64_t end,
            int64_t row_bytes, const void* fill, char* out) {
    const size_t bytes = static_cast<size_t>(Bytes > 0 ? Bytes : row_bytes);
    for (int64_t row = begin; row < end; ++row) {
        char* to = out + row * static_cast<int64_t>(bytes);
        int64_t id = ids[row];
        if (id >= 0 && id < src_rows) {
            std::memcpy(to, src + id * stride, bytes);
        } else if (fill != nullptr) {
            std::memcpy(to, fill, bytes);
        } else {
            std::memset(to, 0, bytes);
        }
    }
}

// Rows are added four at a time, so that a running sum is loaded and stored once for four additions; each
// column still adds in row order. These are kernels of their own, a call for each four rows, because inside
// the loop over rows GCC jams the two loops and then vectorises neither.
template <class T>
struct AddFourRows {
    using Sum = Accumulator<T>;
    static FV_INLINE void run(const T* a, const T* b, const T* c, const T* d, int64_t width,
                              typename Sum::type* FV_RESTRICT total) {
        for (int64_t i = 0; i < width; ++i) {
            total[i] = (((total[i] + Sum::load(a[i])) + Sum::load(b[i])) + Sum::load(c[i])) + Sum::load(d[i]);
        }
    }
};

template <class T>
struct AddRow {
    using Sum = Accumulator<T>;
    static FV_INLINE void run(const T* a, int64_t width, typename Sum::type* FV_RESTRICT total) {
        for (int64_t i = 0; i < width; ++i) total[i] += Sum::load(a[i]);
    }
};

template <class T>
struct Divide {
    using Sum = Accumulator<T>;
    static FV_INLINE void run(const typename Sum::type* total, typename Sum::type divisor, int64_t width,
                              T* FV_RESTRICT out) {
        for (int64_t i = 0; i < width; ++i) Sum::store(total[i] / divisor, out + i);
    }
};

// One segment of `count` rows, in blocks of columns whose sums stay in the first-level cache.
template <class T>
void sum_segment(const T* src, int64_t stride, const int64_t* order, int64_t count, int64_t columns,
                 bool mean, T* out) {
    using Acc = typename Accumulator<T>::type;
    constexpr int64_t block = 1024;
    alignas(64) Acc total[block];
    const Acc divisor = mean && count > 0 ? static_cast<Acc>(count) : Acc{1};
    for (int64_t start = 0; start < columns; start += block) {
        const int64_t width = std::min(block, columns - start);
        std::fill_n(total, width, Acc{0});
        auto row = [&](int64_t r) { return src + order[r] * stride + start; };
        int64_t r = 0;
        for (; r + 4 <= count; r += 4) {
            dispatch<AddFourRows<T>>(row(r), row(r + 1), row(r + 2), row(r + 3), width, +total);
        }
        for (; r < count; ++r) dispatch<AddRow<T>>(row(r), width, +total);
        dispatch<Divide<T>>(+total, divisor, width, out + start);
    }
}

template <class T>
void segment_sum(const T* src, int64_t stride, const int64_t* order, const int64_t* offsets, int64_t segments,
                 int64_t width, bool mean, T* out) {
    auto sum = [&](int64_t s, int64_t column, int64_t columns) {
        sum_segment(src + column, stride, order + offsets[s], offsets[s + 1] - offsets[s], columns, mean,
                    out + s * width + column);
    };
    int64_t longest = 0;
    for (int64_t s = 0; s < segments; ++s) longest = std::max(longest, offsets[s + 1] - offsets[s]);
    const int64_t rows = offsets[segments] - offsets[0];
    const int64_t row_bytes = width * static_cast<int64_t>(sizeof(T));

    if (longest * 16 > rows + segments) {
        // Few or lopsided segments: threads share the width, a cache line the least.
        constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));
        int64_t grain = rows_per_thread((rows + segments) * line * static_cast<int64_t>(sizeof(T)));
        parallel_for(0, (width + line - 1) / line, grain, [&](int64_t begin, int64_t end) {
            int64_t column = begin * line;
            for (int64_t s = 0; s < segments; ++s) sum(s, column, std::min(end * line, width) - column);
        });
        return;
    }
    // A segment costs its rows and one output row; it belongs to the range that its first unit falls into.
    auto first_at = [&](int64_t unit) {
        int64_t low = 0, high = segments;
        while (low < high) {
            int64_t s = (low + high) / 2;
            if (offsets[s] - offsets[0] + s < unit) {
                low = s + 1;
            } else {
                high = s;
            }
        }
        return low;
    };
    parallel_for(0, rows + segments, rows_per_thread(row_bytes), [&](int64_t begin, int64_t end) {
        int64_t last = first_at(end);
        for (int64_t s = first_at(begin); s < last; ++s) sum(s, 0, width);
    });
}

}  // namespace
}  // namespace fv

// out[r] = src[ids[r]], or fill (null: zeros) where ids[r] is outside 0..src_rows-1. `out` is contiguous.
FV_API void fv_gather_rows(const void* src, int64_t src_rows, int64_t src_stride_bytes, const int64_t* ids,
                           int64_t rows, int64_t row_bytes, const void* fill, void* out) {
    if (row_bytes <= 0) return;
    auto move = fv::gather<0>;
    if (row_bytes == 2) move = fv::gather<2>;
    if (row_bytes == 4) move = fv::gather<4>;
    if (row_bytes == 8) move = fv::gather<8>;
    fv::parallel_for(0, rows, fv::rows_per_thread(row_bytes), [&](int64_t begin, int64_t end) {
        move(static_cast<const char*>(src), src_rows, src_stride_bytes, ids, begin, end, row_bytes, fill,
             static_cast<char*>(out));
    });
}

// out[s] = sum of src[order[i]] for i in offsets[s]..offsets[s+1]-1, in that order, accumulated in float32
// (float64 for float64); divided by the count if `mean`; 0 where empty. Each output element is one thread's,
// so the result is bitwise the same for any number of threads. dtype: 0 f32, 1 f64, 2 f16, 3 bf16.
FV_API void fv_segment_sum(int32_t dtype, const void* src, int64_t src_stride, const int64_t* order,
                           const int64_t* offsets, int64_t segments, int64_t width, int32_t mean, void* out) {
    if (segments <= 0 || width <= 0) return;
    auto sum = [&](auto* typed) {
        using T = std::remove_pointer_t<decltype(typed)>;
        fv::segment_sum<T>(static_cast<const T*>(src), src_stride, order, offsets, segments, width, mean != 0,
                           static_cast<T*>(out));
    };
    switch (dtype) {
        case fv::dtype_f32:
            return sum(static_cast<float*>(nullptr));
        case fv::dtype_f64:
            return sum(static_cast<double*>(nullptr));
        case fv::dtype_f16:
            return sum(static_cast<fv::Half*>(nullptr));
        case fv::dtype_bf16:
            return sum(static_cast<fv::BFloat16*>(nullptr));
    }
}
