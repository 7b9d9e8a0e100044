"""The sums of `curvature` on a CUDA card, from the projector's table in halves."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from verglas.refine.curvature_native import SUMS
from verglas.volume.slices import Pixels, Projector
from verglas.volume.slices_triton import BLOCK, VARYING, locate, packed, pair, strides

_LEAST_PROGRAMS = 2048  # what keeps a card busy


def local_sums(projector: Projector, pixels: Pixels, moved: torch.Tensor, ctf: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """As `curvature.plain_sums`; few images are divided among several programs each."""
    n, k = ctf.shape
    blocks = triton.cdiv(pixels.count, BLOCK)
    parts = max(1, min(blocks, _LEAST_PROGRAMS // max(n, 1)))
    out = torch.empty(n, parts, SUMS, device=ctf.device)
    table, scales = packed(projector)
    stride_y, stride_z, _ = strides(projector.table.shape[1:-1])
    place = (stride_y, stride_z, float(projector.half_range), float(projector.padding))
    images = (torch.view_as_real(moved.contiguous()), ctf.contiguous(), matrices.to(ctf).contiguous())
    if n:
        plane = (pixels.kx, pixels.ky, pixels.count, k)
        _local_sums[(n, parts)](table, scales, *place, *images, *plane, triton.cdiv(blocks, parts), out, SUMS=SUMS, BLOCK=BLOCK)
    return out.sum(1)


@triton.jit
def _slopes(table, stride_y, stride_z, corner, fx, fy, fz, mask):
    """Value of the transform inside its cells and slopes along x, y and z: four real and four imaginary parts."""
    re = tl.zeros_like(fx)
    im, x_re, x_im = tl.zeros_like(fx), tl.zeros_like(fx), tl.zeros_like(fx)
    y_re, y_im, z_re, z_im = tl.zeros_like(fx), tl.zeros_like(fx), tl.zeros_like(fx), tl.zeros_like(fx)
    for up in tl.static_range(2):
        for right in tl.static_range(2):
            for far in tl.static_range(2):
                a, b = pair(table, corner + up * stride_z + right * stride_y + far, mask, True)
                in_x, in_y, in_z = fx if far else 1 - fx, fy if right else 1 - fy, fz if up else 1 - fz
                across_x, across_y, across_z = in_y * in_z, in_x * in_z, in_x * in_y
                re += across_x * in_x * a
                im += across_x * in_x * b
                x_re += across_x * (a if far else -a)
                x_im += across_x * (b if far else -b)
                y_re += across_y * (a if right else -a)
                y_im += across_y * (b if right else -b)
                z_re += across_z * (a if up else -a)
                z_im += across_z * (b if up else -b)
    return re, im, x_re, x_im, y_re, y_im, z_re, z_im


@triton.jit(do_not_specialize=VARYING)
def _local_sums(
    table, scales, stride_y, stride_z, half, padding, moved, ctf, matrices, kx, ky, count, k, steps, out,
    SUMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    matrix, scale = matrices + 9 * image, tl.load(scales)
    turn = scale * padding  # of slopes
    e1x, e1y, e1z = tl.load(matrix) * turn, tl.load(matrix + 1) * turn, tl.load(matrix + 2) * turn
    e2x, e2y, e2z = tl.load(matrix + 3) * turn, tl.load(matrix + 4) * turn, tl.load(matrix + 5) * turn
    nx, ny, nz = tl.load(matrix + 6) * turn, tl.load(matrix + 7) * turn, tl.load(matrix + 8) * turn
    zero = tl.zeros((BLOCK,), tl.float32)
    uu_xx, uu_xy, uu_yy, up_xx, up_xy, up_yy, pp_xx, pp_xy, pp_yy = zero, zero, zero, zero, zero, zero, zero, zero, zero
    uv_x, uv_y, vp_x, vp_y, ud_x, ud_y, pd_x, pd_y, vv, vd, value = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    for step in range(steps):
        pixel = (part * steps + step) * BLOCK + tl.arange(0, BLOCK)
        mask = pixel < count
        x, y = tl.load(kx + pixel, mask=mask, other=0.0), tl.load(ky + pixel, mask=mask, other=0.0)
        ix, iy, iz, fx, fy, fz, sign = locate(matrix, x, y, half, padding)
        corner = iz * stride_z + iy * stride_y + ix
        re, im, gx_re, gx_im, gy_re, gy_im, gz_re, gz_im = _slopes(table, stride_y, stride_z, corner, fx, fy, fz, mask)
        # the mate's value is the conjugate, and its slope the conjugate with the other sign
        p_re, p_im = scale * re, scale * sign * im
        u_re, u_im = sign * (nx * gx_re + ny * gy_re + nz * gz_re), nx * gx_im + ny * gy_im + nz * gz_im
        wx, wy, wz = x * e2x - y * e1x, x * e2y - y * e1y, x * e2z - y * e1z
        v_re, v_im = sign * (wx * gx_re + wy * gy_re + wz * gz_re), wx * gx_im + wy * gy_im + wz * gz_im
        c = tl.load(ctf + image * k + pixel, mask=mask, other=0.0)
        m_re = tl.load(moved + 2 * (image * k + pixel), mask=mask, other=0.0)
        m_im = tl.load(moved + 2 * (image * k + pixel) + 1, mask=mask, other=0.0)
        c2 = c * c
        d_re, d_im = m_re - c2 * p_re, m_im - c2 * p_im
        uu, up, pp = c2 * (u_re * u_re + u_im * u_im), c2 * (u_re * p_im - u_im * p_re), c2 * (p_re * p_re + p_im * p_im)
        uv, vp = c2 * (u_re * v_re + u_im * v_im), c2 * (v_re * p_im - v_im * p_re)
        ud, pd = u_re * d_re + u_im * d_im, p_re * d_im - p_im * d_re
        xx, xy, yy = x * x, x * y, y * y
        uu_xx += uu * xx
        uu_xy += uu * xy
        uu_yy += uu * yy
        up_xx += up * xx
        up_xy += up * xy
        up_yy += up * yy
        pp_xx += pp * xx
        pp_xy += pp * xy
        pp_yy += pp * yy
        uv_x += uv * x
        uv_y += uv * y
        vp_x += vp * x
        vp_y += vp * y
        ud_x += ud * x
        ud_y += ud * y
        pd_x += pd * x
        pd_y += pd * y
        vv += c2 * (v_re * v_re + v_im * v_im)
        vd += v_re * d_re + v_im * d_im
        value += m_re * p_re + m_im * p_im - 0.5 * pp
    into = out + (image * tl.num_programs(1) + part) * SUMS
    tl.store(into, tl.sum(uu_xx))
    tl.store(into + 1, tl.sum(uu_xy))
    tl.store(into + 2, tl.sum(uu_yy))
    tl.store(into + 3, tl.sum(up_xx))
    tl.store(into + 4, tl.sum(up_xy))
    tl.store(into + 5, tl.sum(up_yy))
    tl.store(into + 6, tl.sum(pp_xx))
    tl.store(into + 7, tl.sum(pp_xy))
    tl.store(into + 8, tl.sum(pp_yy))
    tl.store(into + 9, tl.sum(uv_x))
    tl.store(into + 10, tl.sum(uv_y))
    tl.store(into + 11, tl.sum(vp_x))
    tl.store(into + 12, tl.sum(vp_y))
    tl.store(into + 13, tl.sum(ud_x))
    tl.store(into + 14, tl.sum(ud_y))
    tl.store(into + 15, tl.sum(pd_x))
    tl.store(into + 16, tl.sum(pd_y))
    tl.store(into + 17, tl.sum(vv))
    tl.store(into + 18, tl.sum(vd))
    tl.store(into + 19, tl.sum(value))
