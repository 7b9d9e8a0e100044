// Sampling of slices and its transpose, for slices_native.py.

#include "volume/slices.h"

namespace {

// What a pixel adds to two neighbours in x: real, imaginary, weight of the near one, then of the far one.
struct Pair {
#ifdef __AVX512VL__
    __m256 both;

    Pair(float real, float imaginary, float weight, float fx) {
        const __m256 value = _mm256_setr_ps(real, imaginary, weight, real, imaginary, weight, 0, 0);
        const float near = 1 - fx;
        both = _mm256_mul_ps(value, _mm256_setr_ps(near, near, near, fx, fx, fx, 0, 0));
    }

    void add(float* corner, float share) const {
        const __m256 before = _mm256_maskz_loadu_ps(0x3F, corner);
        _mm256_mask_storeu_ps(corner, 0x3F, _mm256_fmadd_ps(_mm256_set1_ps(share), both, before));
    }
#else
    float4v first;
    float2v second;

    Pair(float real, float imaginary, float weight, float fx) {
        first = float4v{real * (1 - fx), imaginary * (1 - fx), weight * (1 - fx), real * fx};
        second = float2v{imaginary * fx, weight * fx};
    }

    void add(float* corner, float share) const {
        const float4v early = load<float4v>(corner) + share * first;
        const float2v late = load<float2v>(corner + 4) + share * second;
        std::memcpy(corner, &early, sizeof early);
        std::memcpy(corner + 4, &late, sizeof late);
    }
#endif
};

}  // namespace

extern "C" {

// Slices [n, k] (complex) at matrices [n, 3, 3].
void project(const float* table, const Grid* grid, const Plane* plane, const float* matrices, int64_t n, float* out) {
    for (int64_t i = 0; i < n; i++) sample(table, *grid, matrices + 9 * i, *plane, out + 2 * i * plane->k);
}

// Adds slices to sums [z, y, x, 3] (real, imaginary, weight), on the planes z (of a flat map: rows y) from `first` to `last` alone:
// threads with planes of their own add everything, and each point gets its shares in the same order, however many threads there are.
// weights may be null.
void spread(float* sums, const Grid* grid, const Plane* plane, const float* matrices, int64_t n, const float* values,
            const float* weights, int64_t first, int64_t last) {
    Points points;
    const bool flat = grid->stride_z == 0;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t from = 0; from < plane->count; from += BLOCK) {
            const int here = locate(points, *grid, matrices + 9 * i, *plane, from);
            for (int j = 0; j < here; j++) {
                const int64_t at = points.plane[j];
                if (at + 1 < first || at >= last) continue;
                const int64_t place = i * plane->k + from + j;
                const Pair pair(values[2 * place], points.sign[j] * values[2 * place + 1], weights ? weights[place] : 0.0f, points.fx[j]);
                const float share_z[2] = {1 - points.fz[j], points.fz[j]}, share_y[2] = {1 - points.fy[j], points.fy[j]};
                for (int up = 0; up < (flat ? 1 : 2); up++) {
                    for (int right = 0; right < 2; right++) {
                        const int64_t own = at + (flat ? right : up);
                        if (own < first || own >= last) continue;
                        float* corner = sums + 3 * (points.corner[j] + up * grid->stride_z + right * grid->stride_y);
                        pair.add(corner, share_z[up] * share_y[right]);
                    }
                }
            }
        }
    }
}
}
