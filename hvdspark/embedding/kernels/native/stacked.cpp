// Sums over a stack of rows: `fields` rows for each of `batch`, as models read them.
//
// numbers: [fields * batch], field by field, which distinct row each place of the stack has. Field f is columns[f] of
// the stack; rows of the stack begin `distance` rows apart. A few rows of the batch are worked on at a time, for all
// fields: so the stack is read nearly as it lies.
#include "kernels.h"

namespace {

constexpr int64_t BLOCK = 16;

// Calls work(place in the stack, number) for every place, and fetch(place, number) one field before.
template <class Fetch, class Work>
INLINE void for_each_place(const int64_t* numbers, int64_t batch, const int64_t* columns, int64_t fields,
                           int64_t distance, Fetch fetch, Work work) {
    for (int64_t first = 0; first < batch; first += BLOCK) {
        const int64_t size = batch - first < BLOCK ? batch - first : BLOCK;
        for (int64_t field = 0; field < fields; field++) {
            const int64_t* mine = numbers + field * batch + first;
            if (field + 1 < fields)
                for (int64_t i = 0; i < size; i++) fetch((first + i) * distance + columns[field + 1], mine[batch + i]);
            for (int64_t i = 0; i < size; i++) work((first + i) * distance + columns[field], mine[i]);
        }
    }
}

template <int WIDTH>
INLINE void sum(const float* stack, int64_t columns_of_row, const int64_t* numbers, int64_t batch,
                const int64_t* columns, int64_t fields, int64_t distance, float* sums) {
    const int64_t width = WIDTH ? WIDTH : columns_of_row, bytes = width * sizeof(float);
    for_each_place(
        numbers, batch, columns, fields, distance,
        [&](int64_t place, int64_t number) {
            fetch<0>(stack + place * width, bytes);
            fetch<1>(sums + number * width, bytes);
        },
        [&](int64_t place, int64_t number) {
            const float* __restrict value = stack + place * width;
            float* __restrict total = sums + number * width;
            for (int64_t j = 0; j < width; j++) total[j] += value[j];
        });
}

}  // namespace

// sums[number of (b, f)] += stack[place of (b, f)], batch by batch: the order of arrival (field by field) for each number
// wherever no two fields share one.
KERNEL void kernels_sum_stacked(const float* stack, int64_t width, const int64_t* numbers, int64_t batch,
                                const int64_t* columns, int64_t fields, int64_t distance, float* sums) {
    switch (width) {
        case 8: return sum<8>(stack, width, numbers, batch, columns, fields, distance, sums);
        case 16: return sum<16>(stack, width, numbers, batch, columns, fields, distance, sums);
        case 17: return sum<17>(stack, width, numbers, batch, columns, fields, distance, sums);
        case 32: return sum<32>(stack, width, numbers, batch, columns, fields, distance, sums);
        default: return sum<0>(stack, width, numbers, batch, columns, fields, distance, sums);
    }
}
