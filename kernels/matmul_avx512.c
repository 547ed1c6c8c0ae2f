/* matmul compiled for AVX-512. */
#include "kernels/matmul_vec512.inc"
#include "kernels/matmul_simd.inc"
#include "kernels/matmul_f32.inc"

void matmul_avx512(const struct weight *w, uint64_t row_begin, uint64_t row_end, enum act_type act, const void *acts,
    size_t act_stride, uint32_t n_tokens, float *out, size_t out_stride)
{
    matmul_product(w, row_begin, row_end, act, acts, act_stride, n_tokens, out, out_stride);
}
