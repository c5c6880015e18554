// Loops over int64 ids: distinct ones, and a hash index.
#include "kernels.h"

namespace {

constexpr int64_t FIRST_CELLS = 1 << 12;

INLINE int64_t first_cell(int64_t key, int64_t mask) { return static_cast<int64_t>(mix(static_cast<uint64_t>(key))) & mask; }

// The cell that holds `key`, or the free one that it would get.
INLINE int64_t probe(const int32_t* cells, int64_t mask, const int64_t* keys, int64_t key, int64_t cell) {
    while (cells[cell] >= 0 && keys[cells[cell]] != key) cell = (cell + 1) & mask;
    return cell;
}

}  // namespace

// Distinct values in the order of their first occurrence.
//
// keys, inverse: [count]. distinct, times: room for [count]. cells: [cell_count], a power of two > count; contents are
// lost. Only as many of them are used as the distinct keys need: those stay in a near cache.
// Returns the number of distinct keys.
KERNEL int64_t kernels_distinct(const int64_t* keys, int64_t count, int64_t* distinct, int64_t* inverse, int64_t* times,
                                int32_t* cells, int64_t cell_count) {
    int64_t used = cell_count < FIRST_CELLS ? cell_count : FIRST_CELLS, mask = used - 1, found = 0;
    std::memset(cells, 0xFF, used * sizeof(int32_t));
    for (int64_t i = 0; i < count; i++) {
        if (i + AHEAD < count) __builtin_prefetch(cells + first_cell(keys[i + AHEAD], mask), 1);
        const int64_t key = keys[i];
        int64_t cell = probe(cells, mask, distinct, key, first_cell(key, mask));
        int64_t number = cells[cell];
        if (number < 0) {
            if (2 * found >= used && used < cell_count) {
                used = 4 * used < cell_count ? 4 * used : cell_count;
                mask = used - 1;
                std::memset(cells, 0xFF, used * sizeof(int32_t));
                for (int64_t u = 0; u < found; u++) {
                    int64_t free = first_cell(distinct[u], mask);
                    while (cells[free] >= 0) free = (free + 1) & mask;
                    cells[free] = static_cast<int32_t>(u);
                }
                cell = probe(cells, mask, distinct, key, first_cell(key, mask));
            }
            number = found++;
            cells[cell] = static_cast<int32_t>(number);
            distinct[number] = key;
            times[number] = 0;
        }
        times[number]++;
        inverse[i] = number;
    }
    return found;
}

// Place of every asked key in `keys`, -1 where there is none. cells: [mask + 1], at least one of them free.
KERNEL void kernels_index_find(const int32_t* cells, int64_t mask, const int64_t* keys, const int64_t* asked,
                               int64_t count, int64_t* places) {
    constexpr int64_t BLOCK = 64;
    int64_t at[BLOCK];
    for (int64_t start = 0; start < count; start += BLOCK) {
        const int64_t size = count - start < BLOCK ? count - start : BLOCK;
        for (int64_t i = 0; i < size; i++) {
            at[i] = first_cell(asked[start + i], mask);
            __builtin_prefetch(cells + at[i]);
        }
        for (int64_t i = 0; i < size; i++)
            if (cells[at[i]] >= 0) __builtin_prefetch(keys + cells[at[i]]);
        for (int64_t i = 0; i < size; i++)
            places[start + i] = cells[probe(cells, mask, keys, asked[start + i], at[i])];
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
