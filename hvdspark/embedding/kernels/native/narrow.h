// Rows as they are stored: in float32, or in 16 bits, to which float32 is rounded as rounding.py does.
#pragma once

#include "kernels.h"

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// One of the two neighbours of a float32 with `DROPPED` bits less, still as a float32; not finite ones stay.
template <int DROPPED>
INLINE uint32_t stochastic(float value, int64_t column, int64_t step) {
    const uint32_t bits = bits_of(value);
    uint32_t noise = bits ^ (static_cast<uint32_t>(column) * 0x85EBCA6Bu + static_cast<uint32_t>(step) * 0x9E3779B9u);
    noise = (noise ^ (noise >> 16)) * 0x7FEB352Du;
    noise = (noise ^ (noise >> 15)) * 0x846CA68Bu;
    noise >>= 32 - DROPPED;
    const uint32_t rounded = (noise + bits) & (0xFFFFFFFFu << DROPPED);
    return (bits & 0x7F800000u) == 0x7F800000u ? bits : rounded;
}

struct Float32Row {
    using Stored = float;
    float* values;
    int64_t column, step;

    INLINE_METHOD float load(int64_t j) const { return values[j]; }
    INLINE_METHOD void store(int64_t j, float value) const { values[j] = value; }
};

struct BFloat16Row {
    using Stored = uint16_t;
    uint16_t* values;
    int64_t column, step;

    INLINE_METHOD float load(int64_t j) const { return float_of(static_cast<uint32_t>(values[j]) << 16); }
    INLINE_METHOD void store(int64_t j, float value) const {
        const uint32_t bits = stochastic<16>(value, column + j, step);
        values[j] = (bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0 : static_cast<uint16_t>(bits >> 16);
    }
};

struct Float16Row {
    using Stored = uint16_t;
    uint16_t* values;
    int64_t column, step;

    INLINE_METHOD float load(int64_t j) const {
        const uint32_t half = values[j], sign = (half & 0x8000u) << 16, rest = (half & 0x7FFFu) << 13;
        // Exponents differ by 112, also those of subnormal numbers; infinities and NaN have the largest of both.
        const uint32_t finite = bits_of(float_of(rest) * float_of((127 + 112) << 23));
        return float_of(sign | (rest >= 0x0F800000u ? rest | 0x7F800000u : finite));
    }

    INLINE_METHOD void store(int64_t j, float value) const {
        const uint32_t bits = stochastic<13>(value, column + j, step), rest = bits & 0x7FFFFFFFu;
        uint32_t half;
        if (rest > 0x7F800000u) {
            half = 0x7E00;
        } else if (rest >= 0x477FF000u) {  // 65520 and more
            half = 0x7C00;
        } else if (rest < 0x38800000u) {  // below 2**-14: the last bit of a number at 0.5 is that of a subnormal one
            half = bits_of(float_of(rest) + 0.5f) - 0x3F000000u;
        } else {
            half = (rest + 0x0FFFu + ((rest >> 13) & 1)) - (112u << 23);
            half >>= 13;
        }
        values[j] = static_cast<uint16_t>((bits >> 16 & 0x8000u) | half);
    }
};
