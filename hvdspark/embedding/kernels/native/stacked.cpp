// Rows that lie side by side in a stack, [batch, columns, width], as models read them: one of each field's own.
//
// Field f is column columns[f] of the stack, and has the row numbers[f][b] < limits[f] of rows[f] in batch row b. A few
// batch rows are worked on at a time, for all fields: so the stack is read and written as it lies, and numbers are read
// some at a time from each field.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace {

constexpr int64_t BLOCK = 8;    // batch rows at a time
constexpr int64_t FIELDS = 64;  // at a time

struct Stack {
    int64_t batch, width, distance;  // floats from one batch row to the next
    const int64_t* columns;
    int64_t fields;
    const int64_t* const* numbers;
    const int64_t* limits;
};

// Calls work(batch row, first field, addresses of rows, count) for fields that follow each other, once their rows were
// asked for: to be written (write = 1) or only read (0). Returns whether all numbers were below their limits; nothing is
// worked on from the block on that has another one.
template <int write, class Work>
INLINE int64_t for_each_run(const Stack& stack, float* const* rows, Work work) {
    float* block[BLOCK][FIELDS];
    for (int64_t first = 0; first < stack.batch; first += BLOCK) {
        const int64_t size = stack.batch - first < BLOCK ? stack.batch - first : BLOCK;
        for (int64_t field = 0; field < stack.fields; field += FIELDS) {
            const int64_t count = stack.fields - field < FIELDS ? stack.fields - field : FIELDS;
            bool inside = true;
            for (int64_t f = 0; f < count; f++) {
                const int64_t* numbers = stack.numbers[field + f] + first;
                const uint64_t limit = static_cast<uint64_t>(stack.limits[field + f]);
                float* mine = rows[field + f];
                for (int64_t i = 0; i < size; i++) {
                    inside &= static_cast<uint64_t>(numbers[i]) < limit;
                    block[i][f] = mine + numbers[i] * stack.width;
                    fetch<write>(block[i][f], stack.width * sizeof(float));
                }
            }
            if (!inside) return 0;
            for (int64_t i = 0; i < size; i++) work(first + i, field, block[i], count);
        }
    }
    return 1;
}

// Copies that need not be in a cache: whoever reads them comes later than the cache holds so much.
INLINE void copy_past_caches(float* target, const float* source, int64_t count) {
#if defined(__x86_64__)
    while (count && reinterpret_cast<uintptr_t>(target) % 16) {
        *target++ = *source++;
        count--;
    }
    for (; count >= 4; count -= 4, target += 4, source += 4) _mm_stream_ps(target, _mm_loadu_ps(source));
#endif
    std::memcpy(target, source, count * sizeof(float));
}

template <int WIDTH>
INLINE int64_t take(const Stack& stack, float* const* rows, float* out, bool past_caches) {
    const int64_t width = WIDTH ? WIDTH : stack.width;
    const int64_t found = for_each_run<0>(stack, rows, [&](int64_t batch_row, int64_t field, float* const* from, int64_t count) ALWAYS_INLINE {
        float* target = out + batch_row * stack.distance;
        for (int64_t f = 0; f < count; f++) {
            float* place = target + stack.columns[field + f] * width;
            if (past_caches)
                copy_past_caches(place, from[f], width);
            else
                std::memcpy(place, from[f], width * sizeof(float));
        }
    });
#if defined(__x86_64__)
    if (past_caches) _mm_sfence();
#endif
    return found;
}

template <int WIDTH>
INLINE int64_t sum(const Stack& stack, float* const* sums, const float* values) {
    const int64_t width = WIDTH ? WIDTH : stack.width;
    return for_each_run<1>(stack, sums, [&](int64_t batch_row, int64_t field, float* const* into, int64_t count) ALWAYS_INLINE {
        const float* source = values + batch_row * stack.distance;
        for (int64_t f = 0; f < count; f++) {
            const float* value = source + stack.columns[field + f] * width;
            __builtin_prefetch(value + 1024);
            float* total = into[f];
            NO_ALIASES
            for (int64_t j = 0; j < width; j++) total[j] += value[j];
        }
    });
}

}  // namespace

#define OF_WIDTH(CALL)              \
    switch (stack->width) {         \
        case 8: return CALL(8);     \
        case 16: return CALL(16);   \
        case 17: return CALL(17);   \
        case 32: return CALL(32);   \
        default: return CALL(0);    \
    }

// out[b, columns[f]] = rows[f][numbers[f][b]]. Returns 0 where a number is not below its limit, else 1.
KERNEL int64_t kernels_take_stacked(const Stack* stack, float* const* rows, float* out, int64_t past_caches) {
#define TAKE(WIDTH) take<WIDTH>(*stack, rows, out, past_caches)
    OF_WIDTH(TAKE)
}

// sums[f][numbers[f][b]] += values[b, columns[f]], batch row by batch row. Returns 0 where a number is not below its
// limit, else 1.
KERNEL int64_t kernels_sum_stacked(const Stack* stack, float* const* sums, const float* values) {
#define SUM(WIDTH) sum<WIDTH>(*stack, sums, values)
    OF_WIDTH(SUM)
}
