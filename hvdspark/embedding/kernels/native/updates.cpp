// Sparse optimizers: rows and state of the slots that a step touched, each once, in one pass over memory.
//
// Every expression is that of optimizers.py as torch works it out: where torch fuses a multiplication with an addition,
// `fma` does, and nothing else is fused.
#include <cmath>

#include "narrow.h"

extern "C" {
// Columns [column, column + width) of the rows in some slots, as updates.py declares it.
struct Touched {
    void* rows;            // [.., stride] of row_type
    int64_t row_type;      // 0: float32, 1: bfloat16, 2: float16
    int64_t stride;
    int64_t column;
    int64_t width;
    const int64_t* slots;  // [count], each at most once
    int64_t count;
    const float* gradients;  // [count, gradient_stride]
    int64_t gradient_stride;
    int32_t* last_step;    // [..]
    int64_t step;
};
struct Rule {
    float rate;            // learning rate
    float eps;             // 0: infinity takes the place of a denominator of 0
    float decay;           // weight decay that is added to the gradient
    float mean_weight;     // 1 - beta1
    float beta2;
    float square_weight;   // 1 - beta2
    float l1, l2;          // ftrl's
    double l1_double, l2_double;
    const float* mean_corrections;  // adam's, by step count up to the last one, which stands for all after it
    const float* variance_corrections;
    int64_t corrections;
};
}

namespace {

using std::sqrt;
typedef float Lanes __attribute__((vector_size(32)));

// As torch: fused where the processor can do that. For those of x86 that cannot there is a library of its own.
INLINE float fma(float a, float b, float c) {
#if defined(__x86_64__) && !defined(__FMA__)
    return a * b + c;
#else
    return __builtin_fmaf(a, b, c);
#endif
}

INLINE float plus_eps(float denominator, float eps) {
    return eps != 0 ? denominator + eps : denominator == 0 ? INFINITY : denominator;
}

template <class Number>
INLINE Number soft_threshold(Number value, Number threshold) {
    return value > threshold ? value - threshold : value < -threshold ? value + threshold : value * 0;
}

// Calls work(slot, row, gradients of the row) for every slot; `prefetch(slot)` some slots before.
template <class Row, class Prefetch, class Work>
INLINE void for_each_row(const Touched touched, Prefetch prefetch, Work work) {
    auto* rows = static_cast<typename Row::Stored*>(touched.rows);
    for (int64_t i = 0; i < touched.count; i++) {
        if (i + AHEAD < touched.count) {
            const int64_t later = touched.slots[i + AHEAD];
            fetch<1>(rows + later * touched.stride + touched.column, touched.width * sizeof(*rows));
            __builtin_prefetch(touched.last_step + later, 1);
            prefetch(later);
        }
        const int64_t slot = touched.slots[i];
        const Row row{rows + slot * touched.stride + touched.column, touched.column, touched.step};
        work(slot, row, touched.gradients + i * touched.gradient_stride);
        touched.last_step[slot] = static_cast<int32_t>(touched.step);
    }
}

// The mean of the squares, summed in torch's order: in 8 lanes (1 where there are fewer columns), four vectors at a time.
template <int WIDTH>
INLINE float mean_square(const float* values, int64_t columns) {
    constexpr int64_t LANES = 8;
    const int64_t width = WIDTH ? WIDTH : columns;
    float total = 0;
    if (width < LANES) {
        float partial[4] = {};
        for (int64_t column = 0; column < width; column++)
            partial[column < width / 4 * 4 ? column % 4 : 0] += values[column] * values[column];
        return (total + (((partial[0] + partial[1]) + partial[2]) + partial[3])) / static_cast<float>(width);
    }
    const int64_t vectors = width / LANES, by_four = vectors / 4 * 4;
    Lanes partial[4] = {};
    for (int64_t vector = 0; vector < vectors; vector++) {
        Lanes some;
        std::memcpy(&some, values + vector * LANES, sizeof some);
        partial[vector < by_four ? vector % 4 : 0] += some * some;
    }
    partial[0] = ((partial[0] + partial[1]) + partial[2]) + partial[3];
    for (int64_t column = vectors * LANES; column < width; column++) total += values[column] * values[column];
    for (int64_t lane = 0; lane < LANES; lane++) total += partial[0][lane];
    return total / static_cast<float>(width);
}

template <int WIDTH, class Row>
INLINE void sgd(const Touched touched, const Rule rule) {
    const int64_t width = WIDTH ? WIDTH : touched.width;
    for_each_row<Row>(touched, [](int64_t) ALWAYS_INLINE {}, [&](int64_t, Row row, const float* gradients) ALWAYS_INLINE {
        NO_ALIASES
        for (int64_t j = 0; j < width; j++) {
            const float value = row.load(j), gradient = rule.decay != 0 ? fma(rule.decay, value, gradients[j]) : gradients[j];
            row.store(j, fma(gradient, -rule.rate, value));
        }
    });
}

template <int WIDTH, class Row>
INLINE void adagrad(const Touched touched, const Rule rule, float* accumulator) {
    const int64_t width = WIDTH ? WIDTH : touched.width;
    const auto prefetch = [&](int64_t slot) ALWAYS_INLINE { fetch<1>(accumulator + slot * width, width * sizeof(float)); };
    for_each_row<Row>(touched, prefetch, [&](int64_t slot, Row row, const float* gradients) ALWAYS_INLINE {
        float* squares = accumulator + slot * width;
        NO_ALIASES
        for (int64_t j = 0; j < width; j++) {
            const float value = row.load(j), gradient = rule.decay != 0 ? fma(rule.decay, value, gradients[j]) : gradients[j];
            squares[j] = fma(gradient, gradient, squares[j]);
            row.store(j, value + (-rule.rate * gradient) / plus_eps(sqrt(squares[j]), rule.eps));
        }
    });
}

template <int WIDTH, class Row>
INLINE void rowwise_adagrad(const Touched touched, const Rule rule, float* accumulator, float* scratch) {
    const int64_t width = WIDTH ? WIDTH : touched.width;
    const auto prefetch = [&](int64_t slot) ALWAYS_INLINE { __builtin_prefetch(accumulator + slot, 1); };
    for_each_row<Row>(touched, prefetch, [&](int64_t slot, Row row, const float* gradients) ALWAYS_INLINE {
        if (rule.decay != 0) {
            NO_ALIASES
            for (int64_t j = 0; j < width; j++) scratch[j] = fma(rule.decay, row.load(j), gradients[j]);
            gradients = scratch;
        }
        const float squares = accumulator[slot] + mean_square<WIDTH>(gradients, width);
        accumulator[slot] = squares;
        const float scale = plus_eps(sqrt(squares), rule.eps);
        NO_ALIASES
        for (int64_t j = 0; j < width; j++) row.store(j, row.load(j) + (-rule.rate * gradients[j]) / scale);
    });
}

template <int WIDTH, class Row>
INLINE void adam(const Touched touched, const Rule rule, float* mean, float* variance, float* steps) {
    const int64_t width = WIDTH ? WIDTH : touched.width;
    const auto prefetch = [&](int64_t slot) ALWAYS_INLINE {
        fetch<1>(mean + slot * width, width * sizeof(float));
        fetch<1>(variance + slot * width, width * sizeof(float));
        __builtin_prefetch(steps + slot, 1);
    };
    const bool near = rule.mean_weight < 0.5f;  // from which end torch goes
    const float weight = near ? rule.mean_weight : rule.mean_weight - 1;
    for_each_row<Row>(touched, prefetch, [&](int64_t slot, Row row, const float* gradients) ALWAYS_INLINE {
        float *means = mean + slot * width, *variances = variance + slot * width;
        const float count = steps[slot] + 1;
        steps[slot] = count;
        const int64_t place = count < rule.corrections ? static_cast<int64_t>(count) : rule.corrections - 1;
        const float mean_correction = rule.mean_corrections[place];
        const float variance_correction = rule.variance_corrections[place];
        NO_ALIASES
        for (int64_t j = 0; j < width; j++) {
            const float value = row.load(j), gradient = rule.decay != 0 ? fma(rule.decay, value, gradients[j]) : gradients[j];
            means[j] = fma(weight, gradient - means[j], near ? means[j] : gradient);
            variances[j] = fma(rule.square_weight * gradient, gradient, variances[j] * rule.beta2);
            const float root = sqrt(variances[j]) / variance_correction;
            row.store(j, value + (-rule.rate * means[j]) / (plus_eps(root, rule.eps) * mean_correction));
        }
    });
}

template <int WIDTH, class Row>
INLINE void ftrl(const Touched touched, const Rule rule, float* accumulator, float* linear, float* rates) {
    const int64_t width = WIDTH ? WIDTH : touched.width;
    const auto prefetch = [&](int64_t slot) ALWAYS_INLINE {
        fetch<1>(accumulator + slot * width, width * sizeof(float));
        fetch<1>(linear + slot * width, width * sizeof(float));
        __builtin_prefetch(rates + slot, 1);
    };
    for_each_row<Row>(touched, prefetch, [&](int64_t slot, Row row, const float* gradients) ALWAYS_INLINE {
        float *squares = accumulator + slot * width, *lines = linear + slot * width;
        if (rates[slot] != rule.rate) {
            // The same row at another rate, see `_change_rate`.
            NO_ALIASES
            for (int64_t j = 0; j < width; j++) {
                const double line = lines[j], root = sqrt(squares[j]);
                const double beyond = soft_threshold<double>(line, rule.l1_double);
                const double before = root / static_cast<double>(rates[slot]) + rule.l2_double;
                const double now = root / static_cast<double>(rule.rate) + rule.l2_double;
                lines[j] = static_cast<float>(line + beyond * (now / before - 1)) + 0.0f;  // never -0
            }
            rates[slot] = rule.rate;
        }
        NO_ALIASES
        for (int64_t j = 0; j < width; j++) {
            const float value = row.load(j), root = sqrt(squares[j]);
            squares[j] = fma(gradients[j], gradients[j], squares[j]);
            const float new_root = sqrt(squares[j]);
            lines[j] = (lines[j] + gradients[j]) - (new_root - root) / rule.rate * value;
            row.store(j, -(soft_threshold(lines[j], rule.l1) / (new_root / rule.rate + rule.l2)) + 0.0f);
        }
    });
}

}  // namespace

// The usual width of float32 rows has loops of its own.
#define DISPATCH(OPTIMIZER, ...)                                                         \
    do {                                                                                 \
        if (touched->row_type == 1) return OPTIMIZER<0, BFloat16Row>(__VA_ARGS__);       \
        if (touched->row_type == 2) return OPTIMIZER<0, Float16Row>(__VA_ARGS__);        \
        if (touched->width == 16) return OPTIMIZER<16, Float32Row>(__VA_ARGS__);         \
        return OPTIMIZER<0, Float32Row>(__VA_ARGS__);                                    \
    } while (0)

KERNEL void kernels_update_sgd(const Touched* touched, const Rule* rule) { DISPATCH(sgd, *touched, *rule); }

KERNEL void kernels_update_adagrad(const Touched* touched, const Rule* rule, float* accumulator) {
    DISPATCH(adagrad, *touched, *rule, accumulator);
}

// scratch: [width]
KERNEL void kernels_update_rowwise_adagrad(const Touched* touched, const Rule* rule, float* accumulator, float* scratch) {
    DISPATCH(rowwise_adagrad, *touched, *rule, accumulator, scratch);
}

KERNEL void kernels_update_adam(const Touched* touched, const Rule* rule, float* mean, float* variance, float* steps) {
    DISPATCH(adam, *touched, *rule, mean, variance, steps);
}

KERNEL void kernels_update_ftrl(const Touched* touched, const Rule* rule, float* accumulator, float* linear,
                                float* rates) {
    DISPATCH(ftrl, *touched, *rule, accumulator, linear, rates);
}
