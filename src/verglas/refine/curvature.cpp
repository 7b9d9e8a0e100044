// Sums for the log-likelihood's value, slope and curvature about poses. The twin in torch is curvature.py, which names the terms.

#include "volume/slices.h"

namespace {

constexpr int SUMS = 20;

struct Samples {  // of a block of pixels, complex: the interpolated transform at x >= 0, and its slopes along the grid's axes
    alignas(64) float value[2 * BLOCK], x[2 * BLOCK], y[2 * BLOCK], z[2 * BLOCK];
};

inline void sample_with_slopes(const float* table, const Grid& grid, const Points& points, int j, Samples& out) {
    const float* corner = table + 2 * points.corner[j];
    const float4v a = load<float4v>(corner), b = load<float4v>(corner + 2 * grid.stride_y);
    const float4v c = load<float4v>(corner + 2 * grid.stride_z), d = load<float4v>(corner + 2 * (grid.stride_z + grid.stride_y));
    const float fx = points.fx[j], fy = points.fy[j], fz = points.fz[j];
    const float4v low = a + fy * (b - a), high = c + fy * (d - c), up = high - low;
    const float4v pair = low + fz * up, across = (b - a) + fz * ((d - c) - (b - a));
    for (int part = 0; part < 2; part++) {
        out.x[2 * j + part] = pair[2 + part] - pair[part];
        out.value[2 * j + part] = pair[part] + fx * (pair[2 + part] - pair[part]);
        out.y[2 * j + part] = across[part] + fx * (across[2 + part] - across[part]);
        out.z[2 * j + part] = up[part] + fx * (up[2 + part] - up[part]);
    }
}

#ifdef __AVX512F__
inline void keep_near(float* out, __m512 values) {
    const __m512i order = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm256_storeu_ps(out, _mm512_castps512_ps256(_mm512_permutexvar_ps(order, values)));
}

// `sample_with_slopes` for four pixels from j on.
inline void sample_four_with_slopes(const float* table, const Grid& grid, const Points& points, int j, Samples& out) {
    const float* const corners[4] = {table + 2 * points.corner[j], table + 2 * points.corner[j + 1], table + 2 * points.corner[j + 2],
                                     table + 2 * points.corner[j + 3]};
    const __m512 fy = each_four_times(points.fy + j), fz = each_four_times(points.fz + j), fx = each_four_times(points.fx + j);
    const __m512 a = together(corners, 0), b = together(corners, 2 * grid.stride_y);
    const __m512 c = together(corners, 2 * grid.stride_z), d = together(corners, 2 * (grid.stride_z + grid.stride_y));
    const __m512 ab = _mm512_sub_ps(b, a), cd = _mm512_sub_ps(d, c);
    const __m512 low = _mm512_fmadd_ps(fy, ab, a), up = _mm512_sub_ps(_mm512_fmadd_ps(fy, cd, c), low);
    const __m512 pair = _mm512_fmadd_ps(fz, up, low), across = _mm512_fmadd_ps(fz, _mm512_sub_ps(cd, ab), ab);
    const auto step = [](__m512 both) { return _mm512_sub_ps(_mm512_permute_ps(both, 0x4E), both); };
    keep_near(out.x + 2 * j, step(pair));
    keep_near(out.value + 2 * j, _mm512_fmadd_ps(fx, step(pair), pair));
    keep_near(out.y + 2 * j, _mm512_fmadd_ps(fx, step(across), across));
    keep_near(out.z + 2 * j, _mm512_fmadd_ps(fx, step(up), up));
}
#endif

// Adds a block's terms to the totals; `turn` are the rows of the pose's matrix times the padding, moved and ctf the block's pixels.
inline void add(const Samples& at, const Points& points, const float* turn, const float* kx, const float* ky, const float* moved,
                const float* ctf, int count, double* totals) {
    float sums[SUMS] = {};
    for (int j = 0; j < count; j++) {
        const float sign = points.sign[j], x = kx[j], y = ky[j], c2 = ctf[j] * ctf[j];
        // the mate's value is the conjugate, and its slope the conjugate with the other sign
        const float p_re = at.value[2 * j], p_im = sign * at.value[2 * j + 1];
        const float gx_re = sign * at.x[2 * j], gx_im = at.x[2 * j + 1], gy_re = sign * at.y[2 * j], gy_im = at.y[2 * j + 1];
        const float gz_re = sign * at.z[2 * j], gz_im = at.z[2 * j + 1];
        const float u_re = turn[6] * gx_re + turn[7] * gy_re + turn[8] * gz_re, u_im = turn[6] * gx_im + turn[7] * gy_im + turn[8] * gz_im;
        const float wx = x * turn[3] - y * turn[0], wy = x * turn[4] - y * turn[1], wz = x * turn[5] - y * turn[2];
        const float v_re = wx * gx_re + wy * gy_re + wz * gz_re, v_im = wx * gx_im + wy * gy_im + wz * gz_im;
        const float m_re = moved[2 * j], m_im = moved[2 * j + 1], d_re = m_re - c2 * p_re, d_im = m_im - c2 * p_im;
        const float uu = c2 * (u_re * u_re + u_im * u_im), up = c2 * (u_re * p_im - u_im * p_re), pp = c2 * (p_re * p_re + p_im * p_im);
        const float uv = c2 * (u_re * v_re + u_im * v_im), vp = c2 * (v_re * p_im - v_im * p_re);
        const float ud = u_re * d_re + u_im * d_im, pd = p_re * d_im - p_im * d_re;
        const float xx = x * x, xy = x * y, yy = y * y;
        sums[0] += uu * xx;
        sums[1] += uu * xy;
        sums[2] += uu * yy;
        sums[3] += up * xx;
        sums[4] += up * xy;
        sums[5] += up * yy;
        sums[6] += pp * xx;
        sums[7] += pp * xy;
        sums[8] += pp * yy;
        sums[9] += uv * x;
        sums[10] += uv * y;
        sums[11] += vp * x;
        sums[12] += vp * y;
        sums[13] += ud * x;
        sums[14] += ud * y;
        sums[15] += pd * x;
        sums[16] += pd * y;
        sums[17] += c2 * (v_re * v_re + v_im * v_im);
        sums[18] += v_re * d_re + v_im * d_im;
        sums[19] += m_re * p_re + m_im * p_im - 0.5f * pp;
    }
    for (int i = 0; i < SUMS; i++) totals[i] += sums[i];
}

}  // namespace

extern "C" {

// Sums [n, 20] of images `moved` [n, k] (complex) with ctf [n, k] at matrices [n, 3, 3]; each thread takes every so-manyth image.
void local_sums(const float* table, const Grid* grid, const Plane* plane, const float* moved, const float* ctf, const float* matrices,
                int64_t n, float* out, int64_t thread, int64_t threads) {
    Points points;
    Samples samples;
    for (int64_t image = thread; image < n; image += threads) {
        const float* matrix = matrices + 9 * image;
        float turn[9];
        for (int entry = 0; entry < 9; entry++) turn[entry] = grid->padding * matrix[entry];
        double totals[SUMS] = {};
        for (int64_t from = 0; from < plane->count; from += BLOCK) {
            const int here = locate(points, *grid, matrix, *plane, from);
            int j = 0;
#ifdef __AVX512F__
            for (; j + 4 <= here; j += 4) sample_four_with_slopes(table, *grid, points, j, samples);
#endif
            for (; j < here; j++) sample_with_slopes(table, *grid, points, j, samples);
            const int64_t at = image * plane->k + from;
            add(samples, points, turn, plane->kx + from, plane->ky + from, moved + 2 * at, ctf + at, here, totals);
        }
        for (int i = 0; i < SUMS; i++) out[SUMS * image + i] = (float)totals[i];
    }
}
}
