// Loops over float32 rows.
#include "kernels.h"

namespace {

// sums[numbers[l]] += values[places[l]] (or values[l]), for l = 0, 1, 2, ...; WIDTH columns, or `columns` where it is 0.
template <int WIDTH>
INLINE void sum(const float* values, const int64_t* places, const int64_t* numbers, int64_t count, int64_t columns,
                float* sums) {
    const int64_t width = WIDTH ? WIDTH : columns, bytes = width * sizeof(float);
    for (int64_t l = 0; l < count; l++) {
        if (l + AHEAD < count) {
            fetch<0>(values + (places ? places[l + AHEAD] : l + AHEAD) * width, bytes);
            fetch<1>(sums + numbers[l + AHEAD] * width, bytes);
        }
        const float* __restrict value = values + (places ? places[l] : l) * width;
        float* __restrict total = sums + numbers[l] * width;
        for (int64_t column = 0; column < width; column++) total[column] += value[column];
    }
}

}  // namespace

// values: [.., width]; sums: [.., width], zeros at first.
KERNEL void kernels_sum(const float* values, const int64_t* places, const int64_t* numbers, int64_t count,
                        int64_t width, float* sums) {
    switch (width) {
        case 8: return sum<8>(values, places, numbers, count, width, sums);
        case 16: return sum<16>(values, places, numbers, count, width, sums);
        case 17: return sum<17>(values, places, numbers, count, width, sums);
        case 32: return sum<32>(values, places, numbers, count, width, sums);
        default: return sum<0>(values, places, numbers, count, width, sums);
    }
}
