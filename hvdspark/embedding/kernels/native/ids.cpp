// Loops over int64 ids: distinct ones, and a hash index.
#include "kernels.h"

namespace {

constexpr int64_t BLOCK = 64;
constexpr int64_t FIRST_CELLS = 1 << 10;
constexpr int64_t NEAR_CELLS = 1 << 15;  // so many are in a core's cache already

INLINE int64_t first_cell(int64_t key, int64_t mask) { return static_cast<int64_t>(mix(static_cast<uint64_t>(key))) & mask; }

// The cell that holds `key`, or the free one that it would get.
INLINE int64_t probe(const int32_t* cells, int64_t mask, const int64_t* keys, int64_t key, int64_t cell) {
    while (cells[cell] >= 0 && keys[cells[cell]] != key) cell = (cell + 1) & mask;
    return cell;
}

// A hash set of the keys distinct[first], ..., distinct[stop - 1]. It begins small, and grows with them: so it stays in a
// near cache as long as it can.
struct Found {
    int64_t* distinct;
    int32_t* cells;
    int64_t cell_count, first, stop, used, mask;

    INLINE_METHOD void clear(int64_t size) {
        used = size < cell_count ? size : cell_count;
        mask = used - 1;
        std::memset(cells, 0xFF, used * sizeof(int32_t));
    }

    INLINE_METHOD int64_t number_of(int64_t key, uint64_t hash) {
        int64_t cell = probe(cells, mask, distinct, key, static_cast<int64_t>(hash) & mask);
        if (cells[cell] >= 0) return cells[cell];
        if (2 * (stop - first) >= used && used < cell_count) {
            clear(4 * used);
            for (int64_t number = first; number < stop; number++) {
                int64_t free = first_cell(distinct[number], mask);
                while (cells[free] >= 0) free = (free + 1) & mask;
                cells[free] = static_cast<int32_t>(number);
            }
            cell = probe(cells, mask, distinct, key, static_cast<int64_t>(hash) & mask);
        }
        cells[cell] = static_cast<int32_t>(stop);
        distinct[stop] = key;
        return stop++;
    }
};

}  // namespace

// Distinct keys of some features, those of one tag together, in the order of their first occurrence.
//
// The keys of feature f are ids[f][i] | tags[f], for i < counts[f]. Features of one tag follow each other.
// limits: their ids are in [0, limits[f]). NULL: not to be checked.
// distinct: room for all. inverse[f][i]: which distinct key it is. cells: [cell_count], a power of two greater than the
// number of the ids of any tag; contents are lost.
// Returns the number of distinct keys; or -1 where an id is not below its limit.
KERNEL int64_t kernels_distinct(const int64_t* const* ids, const int64_t* counts, const int64_t* tags,
                                const int64_t* limits, int64_t features, int64_t* distinct, int64_t* const* inverse,
                                int32_t* cells, int64_t cell_count) {
    Found found{distinct, cells, cell_count, 0, 0, 0, 0};
    int64_t keys[BLOCK];
    uint64_t hashes[BLOCK];
    for (int64_t f = 0; f < features; f++) {
        if (!f || tags[f] != tags[f - 1]) {
            found.first = found.stop;
            found.clear(FIRST_CELLS);
        }
        const int64_t tag = tags[f];
        const uint64_t limit = limits ? static_cast<uint64_t>(limits[f]) : 0;
        for (int64_t start = 0; start < counts[f]; start += BLOCK) {
            const int64_t size = counts[f] - start < BLOCK ? counts[f] - start : BLOCK;
            const int64_t* some = ids[f] + start;
            int64_t* numbers = inverse[f] + start;
            bool inside = true;
            for (int64_t i = 0; i < size; i++) {
                inside &= static_cast<uint64_t>(some[i]) < limit;
                keys[i] = some[i] | tag;
                hashes[i] = mix(static_cast<uint64_t>(keys[i]));
            }
            if (limits && !inside) return -1;
            if (found.used > NEAR_CELLS)
                for (int64_t i = 0; i < size; i++) __builtin_prefetch(cells + (static_cast<int64_t>(hashes[i]) & found.mask), 1);
            for (int64_t i = 0; i < size; i++) numbers[i] = found.number_of(keys[i], hashes[i]);
        }
    }
    return found.stop;
}

// Whether all ids[f][i], i < counts[f], are in [0, limits[f]).
KERNEL int64_t kernels_are_below(const int64_t* const* ids, const int64_t* counts, const int64_t* limits, int64_t features) {
    bool below = true;
    for (int64_t f = 0; f < features; f++) {
        const uint64_t limit = static_cast<uint64_t>(limits[f]);
        for (int64_t i = 0; i < counts[f]; i++) below &= static_cast<uint64_t>(ids[f][i]) < limit;
    }
    return below;
}

// Place of every asked key in `keys`, -1 where there is none. cells: [mask + 1], at least one of them free.
// counts: of the keys, each of which is asked for at most once: one more for each that is found. NULL: nobody counts.
KERNEL void kernels_index_find(const int32_t* cells, int64_t mask, const int64_t* keys, const int64_t* asked,
                               int64_t count, int64_t* places, int32_t* counts) {
    int64_t at[BLOCK];
    for (int64_t start = 0; start < count; start += BLOCK) {
        const int64_t size = count - start < BLOCK ? count - start : BLOCK;
        for (int64_t i = 0; i < size; i++) at[i] = first_cell(asked[start + i], mask);
        for (int64_t i = 0; i < size; i++) __builtin_prefetch(cells + at[i]);
        for (int64_t i = 0; i < size; i++) {
            const int32_t place = cells[at[i]];
            if (place < 0) continue;
            __builtin_prefetch(keys + place);
            if (counts) __builtin_prefetch(counts + place, 1);
        }
        for (int64_t i = 0; i < size; i++) {
            const int32_t place = cells[probe(cells, mask, keys, asked[start + i], at[i])];
            places[start + i] = place;
            if (counts && place >= 0) counts[place]++;
        }
    }
}

// Give the keys [first, stop), which no cell holds yet, their cells.
KERNEL void kernels_index_place(int32_t* cells, int64_t mask, const int64_t* keys, int64_t first, int64_t stop) {
    for (int64_t place = first; place < stop; place++) {
        if (place + AHEAD < stop) __builtin_prefetch(cells + first_cell(keys[place + AHEAD], mask), 1);
        int64_t cell = first_cell(keys[place], mask);
        while (cells[cell] >= 0) cell = (cell + 1) & mask;
        cells[cell] = static_cast<int32_t>(place);
    }
}
