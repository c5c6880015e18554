#include "kernels.h"

#define TEXT(name) #name
#define TEXT_OF(name) TEXT(name)

// Tells this library from one that was compiled from other sources.
KERNEL const char* kernels_fingerprint() { return TEXT_OF(KERNELS_FINGERPRINT); }

// The newest kind of processor that this one is, of those that there are libraries for: 0, 1, 2 as library.py has them.
KERNEL int64_t kernels_processor() {
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                      __builtin_cpu_supports("bmi2");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    return avx2 ? (avx512 ? 2 : 1) : 0;
#else
    return 0;
#endif
}
