// What all kernels share. Plain C calls on plain memory: Python checks shapes, dtypes and bounds before it calls.
//
// Compiled without contraction (-ffp-contract=off): a fused multiply-add stands here where torch has one, and nowhere
// else, so that results are those of the reference in Python bit for bit.
#pragma once

#include <cstdint>
#include <cstring>

#define KERNEL extern "C" __attribute__((visibility("default")))
// Also behind the parameters of a lambda.
#define ALWAYS_INLINE __attribute__((always_inline))
#define INLINE_METHOD inline ALWAYS_INLINE
// Before a loop over the columns of a row: what it writes is nothing that it reads elsewhere.
#define NO_ALIASES _Pragma("GCC ivdep")
#define INLINE static INLINE_METHOD

// Random reads of memory are asked for so many items before they are needed.
constexpr int64_t AHEAD = 16;

// splitmix64, as `mix` of mixing.py.
INLINE uint64_t mix(uint64_t value) {
    value += 0x9E3779B97F4A7C15u;
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
    return value ^ (value >> 31);
}

// Ask for `bytes` of memory that will be written (write = 1) or only read (0).
template <int write>
INLINE void fetch(const void* start, int64_t bytes) {
    const char* line = static_cast<const char*>(start);
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(line + at, write);
}
