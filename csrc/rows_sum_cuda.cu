// Sums of rows by segment on a GPU, in an order that no scheduling changes and with no atomics.
#include "row_sums_cuda.h"

namespace fv {
namespace {

// out[s] = the sum of segment s, finished. Three blocks that take rows one at a time have 48 KiB under way;
// 32 sums in each thread's registers leave room for two, which take rows in pairs: 32 KiB, and 64 where a
// segment has a second row.
template <class T, class Out, int V>
__global__ void __launch_bounds__(block_threads, V >= 8 ? 2 : 3)
    sum_segments_kernel(Rows<T> rows, Spans spans, int64_t row_packs, Finish finish,
                        Pack<Out, V>* __restrict__ out) {
    using S = typename Sum<T>::type;
    const bool spoiled = finish.spoiled();
    const int64_t span = static_cast<int64_t>(blockDim.x) * loads;
    for (int64_t s = blockIdx.y * static_cast<int64_t>(blockDim.y) + threadIdx.y; s < spans.segments;
         s += gridDim.y * static_cast<int64_t>(blockDim.y)) {
        int64_t first, last;
        spans.of(s, &first, &last);
        const S over = static_cast<S>(finish.divisor(s)), inverse = S{1} / over;
        for (int64_t column = blockIdx.x * span + threadIdx.x; column < row_packs;
             column += gridDim.x * span) {
            Total<T, V> total;
            total.clear();
            total.template add<V >= 8 ? 2 : 1>(rows, first, spoiled ? first : last, column, row_packs);
#pragma unroll
            for (int c = 0; c < loads; ++c) {
#pragma unroll
                for (int v = 0; v < V; ++v)
                    total.at[c][v] = spoiled ? not_a_number<S>() : divided(total.at[c][v], over, inverse);
            }
            total.store(out + s * row_packs, column, row_packs);
        }
    }
}

// partial[s + c] = the sum of those rows of segment s that chunk c of `length` rows holds.
template <class T, int V>
__global__ void __launch_bounds__(block_threads, 2)
    sum_chunks_kernel(Rows<T> rows, Spans spans, int64_t length, int64_t row_packs,
                      Pack<typename Sum<T>::type, V>* __restrict__ partial) {
    const int64_t chunks = (length + chunk - 1) >> chunk_bits;
    const int64_t span = static_cast<int64_t>(blockDim.x) * loads;
    for (int64_t c = blockIdx.y * static_cast<int64_t>(blockDim.y) + threadIdx.y; c < chunks;
         c += gridDim.y * static_cast<int64_t>(blockDim.y)) {
        const int64_t begin = c << chunk_bits, end = begin + chunk;
        int64_t low = 0, high = spans.segments, first, last;
        // The first segment that ends beyond the chunk's beginning.
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            spans.of(middle, &first, &last);
            if (last > begin) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        for (int64_t s = low; s < spans.segments; ++s) {
            spans.of(s, &first, &last);
            if (first >= end) break;
            first = first > begin ? first : begin;
            last = last < end ? last : end;
            if (first >= last) continue;
            for (int64_t column = blockIdx.x * span + threadIdx.x; column < row_packs;
                 column += gridDim.x * span) {
                Total<T, V> total;
                total.clear();
                total.template add<2>(rows, first, last, column, row_packs);
                total.store(partial + (s + c) * row_packs, column, row_packs);
            }
        }
    }
}

// Rows of the next level's partial sums, at most.
int64_t next_length(int64_t segments, int64_t length) { return segments + ceil_div(length, chunk); }

bool is_long(int64_t segments, int64_t length) { return length > long_segment * segments; }

struct Sums {
    const int64_t* order;
    const int64_t* occupant;
    Spans spans;
    int64_t width;
    Finish finish;
    void* scratch;
    void* stream;

    // Elements that one access may take: `size` bytes each where they come from, `out_size` where sums go.
    int64_t aligned(const void* src, int64_t stride, int64_t size, const void* out, int64_t out_size) const {
        const int64_t from = alignment(address(src), stride * size, width * size);
        const int64_t to = alignment(address(out), width * out_size);
        return from / size < to / out_size || to == 16 ? from / size : to / out_size;
    }

    template <class T, class Out, int V>
    int32_t finish_by(const Rows<T>& rows, const Spans& last, void* out) const {
        RowLaunch launch(last.segments, width / V, 1, loads, stream);
        return launch.run(sum_segments_kernel<T, Out, V>, rows, last, width / V, finish,
                          static_cast<Pack<Out, V>*>(out));
    }

    template <class T, class Out>
    int32_t finish_rows(const Rows<T>& rows, const Spans& last, void* out) const {
        const int64_t packs = aligned(rows.src, rows.stride, sizeof(T), out, sizeof(Out));
        constexpr int most = 16 / static_cast<int>(sizeof(T));
        if (packs >= most) return finish_by<T, Out, most>(rows, last, out);
        if constexpr (most > 2 && sizeof(T) == sizeof(Out)) {
            if (packs >= most / 2) return finish_by<T, Out, most / 2>(rows, last, out);
        }
        return finish_by<T, Out, 1>(rows, last, out);
    }

    template <class T, int V>
    int32_t chunks_by(const Rows<T>& rows, const Spans& level, int64_t length, void* partial) const {
        RowLaunch launch(ceil_div(length, chunk), width / V, 1, loads, stream);
        return launch.run(sum_chunks_kernel<T, V>, rows, level, length, width / V,
                          static_cast<Pack<typename Sum<T>::type, V>*>(partial));
    }

    template <class T>
    int32_t chunk_rows(const Rows<T>& rows, const Spans& level, int64_t length, void* partial) const {
        using S = typename Sum<T>::type;
        const int64_t packs = aligned(rows.src, rows.stride, sizeof(T), partial, sizeof(S));
        constexpr int most = 16 / static_cast<int>(sizeof(T));
        if (packs >= most) return chunks_by<T, most>(rows, level, length, partial);
        if constexpr (most > 2) {
            if (packs >= most / 2) return chunks_by<T, most / 2>(rows, level, length, partial);
        }
        return chunks_by<T, 1>(rows, level, length, partial);
    }

    template <class T>
    int32_t run(const void* src, int64_t stride, void* out) const {
        using S = typename Sum<T>::type;
        const Rows<T> rows{static_cast<const T*>(src), stride, order, occupant};
        if (scratch == nullptr) return finish_rows<T, T>(rows, spans, out);
        Spans level = spans;
        int64_t length = spans.rows;
        S* partial = static_cast<S*>(scratch);
        int32_t status = chunk_rows(rows, level, length, partial);
        for (;;) {
            level.levels += 1;
            length = next_length(spans.segments, length);
            const Rows<S> sums{partial, width, nullptr, nullptr};
            if (status != 0) return status;
            if (!is_long(spans.segments, length)) return finish_rows<S, T>(sums, level, out);
            partial += length * width;
            status = chunk_rows(sums, level, length, partial);
        }
    }
};

}  // namespace
}  // namespace fv

// Bytes of scratch that fv_cuda_sum_rows wants for these sizes, 0 for none; from 16-byte aligned memory.
FV_API int64_t fv_cuda_sum_scratch(int32_t dtype, int64_t rows, int64_t segments, int64_t width) {
    int64_t total = 0;
    if (segments <= 0 || width <= 0) return 0;
    while (fv::is_long(segments, rows)) {
        rows = fv::next_length(segments, rows);
        total += rows;
    }
    return total * width * (dtype == fv::dtype_f64 ? 8 : 4);
}

// out[s] = sum of src[order[i]] (null: src[i]) over offsets[s] <= i < offsets[s + 1], in that order; a null
// `offsets` is one segment of all `rows`. With `occupant` only the rows r with occupant[r] < 0 count. With
// `mean` divided by the segment's rows, at least 1. Everything is NaN if *flag (null: none) is not `clean`,
// or if `all_rows` and some of `rows` are in no segment. `mean` and `all_rows` want offsets. Strides and
// widths are in elements; `out` is contiguous; sums run in float32 (float64 for float64); `scratch` is null
// exactly if fv_cuda_sum_scratch says 0. dtype: 0 f32, 1 f64, 2 f16, 3 bf16. Returns the launch's error.
FV_API int32_t fv_cuda_sum_rows(int32_t dtype, const void* src, int64_t src_stride, int64_t rows,
                                const int64_t* order, const int64_t* occupant, const int64_t* offsets,
                                int64_t segments, int64_t width, int32_t mean, int32_t all_rows,
                                const int64_t* flag, int64_t clean, void* scratch, void* out, void* stream) {
    if (segments <= 0 || width <= 0) return 0;
    const bool fits = offsets != nullptr || (segments == 1 && mean == 0 && all_rows == 0);
    if (!fits || (scratch != nullptr) != fv::is_long(segments, rows)) return cudaErrorInvalidValue;
    const fv::Sums sums{order,
                        occupant,
                        {offsets, segments, rows, 0},
                        width,
                        {offsets, segments, rows, mean, all_rows, {flag, clean}},
                        scratch,
                        stream};
    switch (dtype) {
        case fv::dtype_f32:
            return sums.run<float>(src, src_stride, out);
        case fv::dtype_f64:
            return sums.run<double>(src, src_stride, out);
        case fv::dtype_f16:
            return sums.run<fv::Half>(src, src_stride, out);
        case fv::dtype_bf16:
            return sums.run<fv::BFloat16>(src, src_stride, out);
    }
    return cudaErrorInvalidValue;
}
