// Row ids: checked and flattened, inverted, sorted by segment.
#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "parallel.h"
#include "simd.h"

namespace fv {
namespace {

constexpr int64_t ids_per_thread = 1 << 16;

// The sign bit of *bad is set where an id lies outside 0..size-1, or (if `ascending`) does not exceed its
// predecessor. Unsigned arithmetic: these differences may wrap, and then another term already has the bit.
struct CheckIds {
    static FV_INLINE void run(const int64_t* FV_RESTRICT ids, int64_t begin, int64_t end, int64_t size,
                              bool ascending, int64_t shift, int64_t* FV_RESTRICT out, uint64_t* bad) {
        const uint64_t last = static_cast<uint64_t>(size) - 1;
        uint64_t wrong = size <= 0 ? ~uint64_t{0} : 0;
        for (int64_t i = begin; i < end; ++i) {
            uint64_t id = static_cast<uint64_t>(ids[i]);
            wrong |= id | (last - id);
        }
        if (ascending) {
            for (int64_t i = begin + 1; i < end; ++i) {
                wrong |= ~(static_cast<uint64_t>(ids[i - 1]) - static_cast<uint64_t>(ids[i]));
            }
        }
        if (out != nullptr) {
            uint64_t add = static_cast<uint64_t>(shift);
            for (int64_t i = begin; i < end; ++i) {
                out[i] = static_cast<int64_t>(static_cast<uint64_t>(ids[i]) + add);
            }
        }
        *bad |= wrong;
    }
};

// Rows begin..end, clip by clip. A range that starts inside a clip also looks at the row before it.
bool rows_are_good(const int64_t* ids, int64_t begin, int64_t end, int64_t per_clip, int64_t size,
                   bool distinct, int64_t* out) {
    uint64_t bad = 0;
    for (int64_t row = begin; row < end;) {
        int64_t clip = row / per_clip;
        int64_t stop = std::min(end, (clip + 1) * per_clip);
        if (distinct && row > clip * per_clip && ids[row - 1] >= ids[row]) return false;
        dispatch<CheckIds>(ids, row, stop, size, distinct, clip * size, out, &bad);
        row = stop;
    }
    return bad >> 63 == 0;
}

bool repeats_earlier(const int64_t* ids, int64_t begin, int64_t row, uint64_t* seen) {
    if (seen == nullptr) return std::find(ids + begin, ids + row, ids[row]) != ids + row;
    uint64_t bit = uint64_t{1} << (ids[row] & 63);
    uint64_t& word = seen[ids[row] >> 6];
    bool repeated = (word & bit) != 0;
    word |= bit;
    return repeated;
}

// One row at a time, for ids that are not ascending: a permutation is legal, and a fault must be located.
int64_t first_bad_row(const int64_t* ids, int64_t rows, int64_t per_clip, int64_t size, bool distinct) {
    int64_t bad = -1;
    uint64_t* seen = nullptr;
    if (distinct && size > 0) {
        seen = static_cast<uint64_t*>(std::calloc(static_cast<size_t>(size / 64 + 1), sizeof(uint64_t)));
    }
    for (int64_t begin = 0; begin < rows && bad == -1; begin += per_clip) {
        for (int64_t row = begin; row < begin + per_clip && bad == -1; ++row) {
            if (ids[row] < 0 || ids[row] >= size) {
                bad = row;
            } else if (distinct && repeats_earlier(ids, begin, row, seen)) {
                bad = -2 - row;
            }
        }
        if (seen == nullptr || bad != -1) continue;
        for (int64_t row = begin; row < begin + per_clip; ++row) seen[ids[row] >> 6] = 0;
    }
    std::free(seen);
    return bad;
}

}  // namespace
}  // namespace fv

// out[r] = ids[r] + (r / per_clip) * size, for batch * per_clip rows; `out` may be null.
// Returns -1 when all is well; r >= 0 where ids[r] is outside 0..size-1; -2 - r where ids[r] repeats an
// earlier id of its clip (looked for only if `distinct`). The first bad row wins; `out` is then undefined.
FV_API int64_t fv_flat_ids(const int64_t* ids, int64_t batch, int64_t per_clip, int64_t size,
                           int32_t distinct, int64_t* out) {
    int64_t rows = batch * per_clip;
    if (rows <= 0) return -1;
    std::atomic<bool> good{true};
    fv::parallel_for(0, rows, fv::ids_per_thread, [&](int64_t begin, int64_t end) {
        if (!fv::rows_are_good(ids, begin, end, per_clip, size, distinct != 0, out)) good = false;
    });
    if (good) return -1;
    int64_t bad = fv::first_bad_row(ids, rows, per_clip, size, distinct != 0);
    if (bad != -1 || out == nullptr) return bad;
    fv::parallel_for(0, rows, fv::ids_per_thread, [&](int64_t begin, int64_t end) {
        fv::rows_are_good(ids, begin, end, per_clip, size, false, out);
    });
    return -1;
}

// inverse[ids[r]] = r, -1 where no row points; ids outside 0..size-1 are ignored.
FV_API void fv_invert_ids(const int64_t* ids, int64_t rows, int64_t size, int64_t* inverse) {
    // Each thread owns a range of `inverse` and reads all ids: repeated ids then have one winner, the last.
    fv::parallel_for(0, size, fv::ids_per_thread, [&](int64_t begin, int64_t end) {
        std::fill(inverse + begin, inverse + end, int64_t{-1});
        for (int64_t row = 0; row < rows; ++row) {
            if (ids[row] >= begin && ids[row] < end) inverse[ids[row]] = row;
        }
    });
}

// Stable counting sort: order[offsets[s]..offsets[s+1]) are the rows of segment s, ascending. Ids outside
// 0..segments-1 are clamped into it.
FV_API void fv_sort_ids(const int64_t* ids, int64_t rows, int64_t segments, int64_t* offsets,
                        int64_t* order) {
    std::fill(offsets, offsets + segments + 1, int64_t{0});
    if (segments <= 0) {
        for (int64_t row = 0; row < rows; ++row) order[row] = row;
        return;
    }
    auto segment_of = [&](int64_t row) { return std::clamp<int64_t>(ids[row], 0, segments - 1); };
    for (int64_t row = 0; row < rows; ++row) ++offsets[segment_of(row) + 1];
    for (int64_t s = 0; s < segments; ++s) offsets[s + 1] += offsets[s];
    // Placing a row moves its segment's start on; afterwards every start has become its end.
    for (int64_t row = 0; row < rows; ++row) order[offsets[segment_of(row)]++] = row;
    for (int64_t s = segments; s > 0; --s) offsets[s] = offsets[s - 1];
    offsets[0] = 0;
}

// Whether cu (count values, at least one) starts at 0, never falls and ends at `rows` or before: then -1, and
// *longest is the largest step; otherwise the index of the first value that is wrong.
FV_API int64_t fv_cu_seqlens(const int32_t* cu, int64_t count, int64_t rows, int64_t* longest) {
    if (cu[0] != 0) return 0;
    int64_t most = 0;
    for (int64_t i = 1; i < count; ++i) {
        const int64_t step = static_cast<int64_t>(cu[i]) - cu[i - 1];
        if (step < 0) return i;
        most = std::max(most, step);
    }
    *longest = most;
    return cu[count - 1] > rows ? count - 1 : -1;
}
