// Images against slices of their own, which are sampled, used and forgotten. The twins in torch are in score.py and accumulate.py.

#include "volume/slices.h"

#include <cmath>
#include <vector>

namespace {

constexpr int WIDE = 16, ROWS = 4, COLUMNS = 4;  // floats of a vector; slices and shifts of a tile that stays in registers
constexpr int SLICES = 8;                        // sampled at once: they stay in the second-level cache
typedef float wide __attribute__((vector_size(4 * WIDE)));

inline float sum_of(const wide& values) {
    float total = 0;
    for (int i = 0; i < WIDE; i++) total += values[i];
    return total;
}

// out[r, t] = sum over j of a[r, j] * b[t, j], for R x T rows of `length` floats (a multiple of WIDE).
template <int R, int T>
inline void tile(const float* a, const float* b, int64_t length, float* out, int64_t stride) {
    wide totals[R][T] = {};
    for (int64_t j = 0; j < length; j += WIDE) {
        wide left[R];
        for (int r = 0; r < R; r++) left[r] = load<wide>(a + r * length + j);
        for (int t = 0; t < T; t++) {
            const wide right = load<wide>(b + t * length + j);
            for (int r = 0; r < R; r++) totals[r][t] += left[r] * right;
        }
    }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) out[r * stride + t] = sum_of(totals[r][t]);
}

template <int R>
inline void products(const float* a, const float* b, int64_t columns, int64_t length, float* out, int64_t stride) {
    int64_t t = 0;
    for (; t + COLUMNS <= columns; t += COLUMNS) tile<R, COLUMNS>(a, b + t * length, length, out + t, stride);
    for (; t < columns; t++) tile<R, 1>(a, b + t * length, length, out + t, stride);
}

// sum over pixels of weight * |slice|^2
inline float energy_of(const float* slice, const float* weight, int64_t k) {
    float total = 0;
    for (int64_t j = 0; j < k; j++) total += weight[j] * (slice[2 * j] * slice[2 * j] + slice[2 * j + 1] * slice[2 * j + 1]);
    return total;
}

// out = image * ctf * factor, complex
inline void shift(const float* image, const float* ctf, const float* factor, int64_t k, float* out) {
    for (int64_t j = 0; j < k; j++) {
        const float real = ctf[j] * image[2 * j], imaginary = ctf[j] * image[2 * j + 1];
        out[2 * j] = real * factor[2 * j] - imaginary * factor[2 * j + 1];
        out[2 * j + 1] = real * factor[2 * j + 1] + imaginary * factor[2 * j];
    }
}

}  // namespace

struct Groups {  // weighted shifts of an image against one slice: those from starts[g] to starts[g + 1]
    const int64_t *starts, *shift;
    const float* weight;
};

namespace {

// Sum of the group's weighted phase factors (complex); returns the sum of its weights.
inline float factor_of(const Groups& groups, int64_t group, const float* factors, int64_t k, float* out) {
    float total = 0;
    std::fill(out, out + 2 * k, 0.0f);
    for (int64_t entry = groups.starts[group]; entry < groups.starts[group + 1]; entry++) {
        const float *factor = factors + 2 * k * groups.shift[entry], weight = groups.weight[entry];
        for (int64_t j = 0; j < 2 * k; j++) out[j] += weight * factor[j];
        total += weight;
    }
    return total;
}

}  // namespace

struct References {  // a table a class, one after the other
    const float* tables;
    Grid grid;
    Plane plane;

    const float* table(int64_t number) const { return tables + 2 * grid.stride_map * number; }
};

struct Lists {  // of images: values[starts[i] ... starts[i] + counts[i]]
    const int64_t *values, *starts, *counts;
};

struct Images {  // rows of `stride` pixels: complex images, their CTFs; phase factors [shifts, k] are for all
    const float *images, *ctf, *factors;
    int64_t stride;
};

extern "C" {

// Scores [most slices, most shifts] of each image `which[i]` against its slices at its shifts; what an image doesn't have is left alone.
// slices.values: places in matrices [m, 3, 3] and classes [m]. Of `threads` that do the same, each takes every so-manyth image.
void score_own(const References* of, const Images* seen, const int64_t* which, int64_t n, const Lists* slices, const float* matrices,
               const int64_t* classes, const Lists* shifts, float* out, int64_t most_slices, int64_t most_shifts, bool correlation,
               int64_t thread, int64_t threads) {
    const int64_t k = of->plane.k, length = 2 * k;
    std::vector<float> moved, power(k), buffer(SLICES * length);
    for (int64_t i = thread; i < n; i += threads) {
        const int64_t image = which[i], columns = shifts->counts[image];
        const float *pixels = seen->images + 2 * image * seen->stride, *ctf = seen->ctf + image * seen->stride;
        moved.resize(columns * length);
        for (int64_t t = 0; t < columns; t++)
            shift(pixels, ctf, seen->factors + 2 * k * shifts->values[shifts->starts[image] + t], k, moved.data() + t * length);
        for (int64_t j = 0; j < k; j++) power[j] = ctf[j] * ctf[j];
        float* scores = out + i * most_slices * most_shifts;
        for (int64_t first = 0; first < slices->counts[image]; first += SLICES) {
            const int64_t here = std::min<int64_t>(SLICES, slices->counts[image] - first);
            for (int64_t r = 0; r < here; r++) {
                const int64_t place = slices->values[slices->starts[image] + first + r];
                sample(of->table(classes[place]), of->grid, matrices + 9 * place, of->plane, buffer.data() + r * length);
            }
            float* rows = scores + first * most_shifts;
            int64_t r = 0;
            for (; r + ROWS <= here; r += ROWS)
                products<ROWS>(buffer.data() + r * length, moved.data(), columns, length, rows + r * most_shifts, most_shifts);
            for (; r < here; r++) products<1>(buffer.data() + r * length, moved.data(), columns, length, rows + r * most_shifts, most_shifts);
            for (r = 0; r < here; r++) {
                const float energy = energy_of(buffer.data() + r * length, power.data(), k);
                const float norm = 1 / std::max(std::sqrt(energy), 1e-20f);
                for (int64_t t = 0; t < columns; t++) {
                    float& score = rows[r * most_shifts + t];
                    score = correlation ? score * norm : score - 0.5f * energy;
                }
            }
        }
    }
}

// Numerators [rows, k] (complex) and weights [rows, k] of slices: the groups order[starts[r]] ... of each slice added up.
void sum_into_slices(const Images* seen, int64_t k, const Groups* groups, const int64_t* image_of, const int64_t* order,
                     const int64_t* starts, int64_t rows, float* numerators, float* weights, int64_t thread, int64_t threads) {
    std::vector<float> factor(2 * k), moved(2 * k);
    for (int64_t row = thread; row < rows; row += threads) {
        float *numerator = numerators + 2 * k * row, *weight = weights + k * row;
        std::fill(numerator, numerator + 2 * k, 0.0f);
        std::fill(weight, weight + k, 0.0f);
        for (int64_t place = starts[row]; place < starts[row + 1]; place++) {
            const int64_t image = image_of[order[place]];
            const float share = factor_of(*groups, order[place], seen->factors, k, factor.data());
            const float* ctf = seen->ctf + image * seen->stride;
            shift(seen->images + 2 * image * seen->stride, ctf, factor.data(), k, moved.data());
            for (int64_t j = 0; j < 2 * k; j++) numerator[j] += moved[j];
            for (int64_t j = 0; j < k; j++) weight[j] += share * ctf[j] * ctf[j];
        }
    }
}

// For each image, over its groups starts[i] ... starts[i + 1]: the weighted real products with the slices, and their weighted power
// times the squared CTF, [b, k] each. matrices [m, 3, 3] and classes [m] of the groups.
void sum_over_slices(const References* of, const Images* seen, const Groups* groups, const float* matrices, const int64_t* classes,
                     const int64_t* starts, int64_t images, float* cross, float* energy, int64_t thread, int64_t threads) {
    const int64_t k = of->plane.k;
    std::vector<float> factor(2 * k), moved(2 * k), slice(2 * k);
    for (int64_t image = thread; image < images; image += threads) {
        const float* ctf = seen->ctf + image * seen->stride;
        float *products = cross + image * k, *powers = energy + image * k;
        std::fill(products, products + k, 0.0f);
        std::fill(powers, powers + k, 0.0f);
        for (int64_t group = starts[image]; group < starts[image + 1]; group++) {
            const float share = factor_of(*groups, group, seen->factors, k, factor.data());
            shift(seen->images + 2 * image * seen->stride, ctf, factor.data(), k, moved.data());
            sample(of->table(classes[group]), of->grid, matrices + 9 * group, of->plane, slice.data());
            for (int64_t j = 0; j < k; j++) {
                products[j] += moved[2 * j] * slice[2 * j] + moved[2 * j + 1] * slice[2 * j + 1];
                powers[j] += share * (slice[2 * j] * slice[2 * j] + slice[2 * j + 1] * slice[2 * j + 1]);
            }
        }
        for (int64_t j = 0; j < k; j++) powers[j] *= ctf[j] * ctf[j];
    }
}
}
