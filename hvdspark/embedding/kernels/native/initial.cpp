// Where rows begin.
#include "kernels.h"

// Uniform numbers in [-scale, scale), as initial.py draws them: rows [count, stride], of which `columns` are written.
// The row of an id is two numbers from each output of a splitmix64 stream that its own hash begins.
KERNEL void kernels_initial_uniform(const int64_t* ids, int64_t count, int64_t table_hash, int64_t columns,
                                    int64_t stride, float factor, float scale, float* rows) {
    const int64_t pairs = columns / 2;
    for (int64_t i = 0; i < count; i++) {
        const uint64_t row = mix(static_cast<uint64_t>(ids[i]) ^ static_cast<uint64_t>(table_hash));
        float* __restrict out = rows + i * stride;
        for (int64_t pair = 0; pair < pairs; pair++) {
            const uint64_t bits = mix(row + static_cast<uint64_t>(pair) * 0x9E3779B97F4A7C15u);
            out[2 * pair] = static_cast<float>(static_cast<int32_t>(static_cast<uint32_t>(bits) >> 8)) * factor - scale;
            out[2 * pair + 1] = static_cast<float>(static_cast<int32_t>(bits >> 40)) * factor - scale;
        }
        if (columns % 2) {
            const uint64_t bits = mix(row + static_cast<uint64_t>(pairs) * 0x9E3779B97F4A7C15u);
            out[columns - 1] = static_cast<float>(static_cast<int32_t>(static_cast<uint32_t>(bits) >> 8)) * factor - scale;
        }
    }
}
