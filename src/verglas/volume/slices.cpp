// Sampling of slices and its transpose, for slices_native.py.

#include "volume/slices.h"

extern "C" {

// Slices [n, k] (complex) at matrices [n, 3, 3].
void project(const float* table, const Grid* grid, const Plane* plane, const float* matrices, int64_t n, float* out) {
    for (int64_t i = 0; i < n; i++) sample(table, *grid, matrices + 9 * i, *plane, out + 2 * i * plane->k);
}

// Adds slices to sums [z, y, x, 3] (real, imaginary, weight), on those planes z with z % threads == thread: all threads together
// add everything, and each point gets its shares in the order of the slices, however many threads there are. weights may be null.
void spread(float* sums, const Grid* grid, const Plane* plane, const float* matrices, int64_t n, const float* values,
            const float* weights, int64_t thread, int64_t threads) {
    Points points;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t from = 0; from < plane->count; from += BLOCK) {
            const int here = locate(points, *grid, matrices + 9 * i, *plane, from);
            const float* value = values + 2 * (i * plane->k + from);
            for (int j = 0; j < here; j++) {
                const float weight = weights ? weights[i * plane->k + from + j] : 0.0f;
                const float fx = points.fx[j], real = value[2 * j], imaginary = points.sign[j] * value[2 * j + 1];
                const float4v near = {real * (1 - fx), imaginary * (1 - fx), weight * (1 - fx), real * fx};
                const float2v far = {imaginary * fx, weight * fx};
                const float share_z[2] = {1 - points.fz[j], points.fz[j]}, share_y[2] = {1 - points.fy[j], points.fy[j]};
                for (int up = 0; up < 2; up++) {
                    if ((points.z[j] + up) % threads != thread || share_z[up] == 0.0f) continue;
                    for (int right = 0; right < 2; right++) {
                        const float share = share_z[up] * share_y[right];
                        if (share == 0.0f) continue;
                        float* corner = sums + 3 * (points.corner[j] + up * grid->stride_z + right * grid->stride_y);
                        const float4v first = load<float4v>(corner) + share * near;
                        const float2v second = load<float2v>(corner + 4) + share * far;
                        std::memcpy(corner, &first, sizeof first);
                        std::memcpy(corner + 4, &second, sizeof second);
                    }
                }
            }
        }
    }
}
}
