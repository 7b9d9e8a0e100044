// Images made ready, and what is kept of their transforms, each in one pass over memory. The twins in torch are in observations.py.

#include "volume/slices.h"

namespace {

typedef double double2v __attribute__((vector_size(16)));

inline int64_t wrapped(int64_t place, int64_t box) { return (place % box + box) % box; }  // C's remainder has the sign of what is divided

struct Real {
    static constexpr int FLOATS = 1;
    static void times(const float* value, const float* factor, float* out) {
        out[0] = value[0] * factor[0];
        out[1] = value[1] * factor[0];
    }
};

struct Complex {
    static constexpr int FLOATS = 2;
    static void times(const float* value, const float* factor, float* out) {
        out[0] = value[0] * factor[0] - value[1] * factor[1];
        out[1] = value[0] * factor[1] + value[1] * factor[0];
    }
};

template <class Factor>
inline void keep(const float* values, const int64_t* index, const float* factor, int64_t k, float* out) {
    for (int64_t j = 0; j < k; j++) Factor::times(values + 2 * index[j], factor + Factor::FLOATS * j, out + 2 * j);
}

}  // namespace

extern "C" {

// Of images [n, box, box] over norm [n], moved by shifts [n, 2] (x, y) around the edges: times mask [box, box], and whole [n, box, box].
// Of `threads` that do the same, each takes every so-manyth image; so it is below.
void masked_and_whole(const float* images, const float* norm, const int64_t* shifts, const float* mask, int64_t box, int64_t n,
                      float* masked, float* whole, int64_t thread, int64_t threads) {
    for (int64_t image = thread; image < n; image += threads) {
        const int64_t own = image * box * box, x = wrapped(shifts[2 * image], box), y = wrapped(shifts[2 * image + 1], box);
        const float over = 1 / norm[image];
        for (int64_t row = 0; row < box; row++) {
            const int64_t to = row * box, from = own + wrapped(row - y, box) * box;
            float *moved = whole + own + to, *under = masked + own + to;
            for (int64_t j = 0; j < x; j++) moved[j] = over * images[from + box - x + j];
            for (int64_t j = x; j < box; j++) moved[j] = over * images[from - x + j];
            for (int64_t j = 0; j < box; j++) under[j] = moved[j] * mask[to + j];
        }
    }
}

// Sums [n, shells] of the power of transforms [n, size] (complex) over the pixels index[starts[s]] ... index[starts[s + 1]] of each shell.
void power_by_shell(const float* transforms, int64_t size, const int64_t* index, const int64_t* starts, int64_t shells, int64_t n,
                    double* out, int64_t thread, int64_t threads) {
    for (int64_t image = thread; image < n; image += threads) {
        const float* values = transforms + 2 * size * image;
        for (int64_t shell = 0; shell < shells; shell++) {
            double2v total = {};
            for (int64_t j = starts[shell]; j < starts[shell + 1]; j++) {
                const double2v value = __builtin_convertvector(load<float2v>(values + 2 * index[j]), double2v);
                total += value * value;
            }
            out[shells * image + shell] = total[0] + total[1];
        }
    }
}

// Transforms [n, size] (complex) at index [k] times factor [n, k], real or complex, into out [n, k] (complex).
void keep_times(const float* transforms, int64_t size, const int64_t* index, int64_t k, const float* factor, bool is_complex, int64_t n,
                float* out, int64_t thread, int64_t threads) {
    const auto kept = is_complex ? keep<Complex> : keep<Real>;
    for (int64_t image = thread; image < n; image += threads) {
        const int64_t own = image * k;
        kept(transforms + 2 * size * image, index, factor + (is_complex ? 2 * own : own), k, out + 2 * own);
    }
}
}
