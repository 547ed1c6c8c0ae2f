/* matmul compiled for AVX2 and AVX-VNNI. */
#define MATMUL_VNNI
#include "kernels/matmul_vec256.inc"
#include "kernels/matmul_simd.inc"
#include "kernels/matmul_f32.inc"

void matmul_avxvnni(const struct weight *w, uint64_t row_begin, uint64_t row_end, enum act_type act, const void *acts,
    size_t act_stride, uint32_t n_tokens, float *out, size_t out_stride)
{
    matmul_product(w, row_begin, row_end, act, acts, act_stride, n_tokens, out, out_stride);
}
