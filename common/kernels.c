/* A 5x5 convolution to 16 channels, ReLU and 2x2 max-pooling as one step, and its gradients.

   At batch 4 a general convolution spends more time on its own set-up than on arithmetic, so
   this one is written for SimpleCNN's two shapes. Its 16 output channels are one vector.
   Tensors are contiguous: images (N, H, W, C), weights (16, 5, 5, C), results (N, h, w, 16).
   `place` says which of the four pixels was the largest, -1 where ReLU cut it off. */

#include <stdint.h>
#include <string.h>

enum { CHANNELS = 16, KERNEL = 5, TAPS = KERNEL * KERNEL, CUT_OFF = -1 };

typedef float vec __attribute__((vector_size(4 * CHANNELS)));
typedef int32_t ivec __attribute__((vector_size(4 * CHANNELS)));

/* The compiler unrolls loops only where it knows the sizes: everything is inlined. */
#define INLINE static inline __attribute__((always_inline))

INLINE vec pick(ivec mask, vec a, vec b) { return (vec)(((ivec)a & mask) | ((ivec)b & ~mask)); }
INLINE ivec ipick(ivec mask, ivec a, ivec b) { return (a & mask) | (b & ~mask); }
INLINE ivec all(int value) { return (ivec){0} + value; }

/* `width` neighbouring pixels of a convolution of x, whose rows are `side` pixels long. */
INLINE void convolve(const float *x, int side, int c_in, const vec *w, vec bias, vec *out, int width)
{
    vec sum[width];
    for (int p = 0; p < width; p++) sum[p] = bias;
    for (int i = 0; i < KERNEL; i++)
        for (int jc = 0; jc < KERNEL * c_in; jc++) {
            const float *from = x + i * side * c_in + jc;
            const vec weight = w[i * KERNEL * c_in + jc];
            for (int p = 0; p < width; p++) sum[p] += from[p * c_in] * weight;
        }
    for (int p = 0; p < width; p++) out[p] = sum[p];
}

INLINE void forward(int side, int c_in, int width, int n, const float *x, const float *weights,
                    const float *biases, float *out, int8_t *place)
{
    const int wide = side - KERNEL + 1, half = wide / 2;
    vec z[2 * wide], w[TAPS * c_in], bias;
    memcpy(&bias, biases, sizeof bias);
    for (int o = 0; o < CHANNELS; o++)
        for (int k = 0; k < TAPS * c_in; k++) w[k][o] = weights[o * TAPS * c_in + k];
    for (int y = 0; y < n * half; y++) { /* the images' rows in turn */
        for (int r = 0; r < 2; r++)
            for (int s = 0; s < wide; s += width) {
                const long row = (long)(y / half) * side + 2 * (y % half) + r;
                convolve(x + (row * side + s) * c_in, side, c_in, w, bias, z + r * wide + s, width);
            }
        for (int s = 0; s < half; s++, out += CHANNELS, place += CHANNELS) {
            vec best = z[2 * s];
            ivec at = all(0);
            for (int q = 1; q < 4; q++) {
                const vec other = z[q / 2 * wide + 2 * s + q % 2];
                const ivec larger = other > best;
                best = pick(larger, other, best);
                at = ipick(larger, all(q), at);
            }
            const ivec cut = best <= (vec){0}; /* NaN is not, and stays */
            best = pick(cut, (vec){0}, best);
            at = ipick(cut, all(CUT_OFF), at);
            memcpy(out, &best, sizeof best);
            for (int o = 0; o < CHANNELS; o++) place[o] = at[o];
        }
    }
}

/* Gradients: g of the result, gw of the weights, gb of the biases, and gx of the images unless
   it is NULL; c_in is 16 then. block: how many of a row's 5 * c_in values of x the loop over
   pixels keeps sums for. */
INLINE void backward(int side, int c_in, int block, int n, const float *x, const float *weights,
                     const int8_t *place, const float *g, float *gw, float *gb, float *gx)
{
    const int wide = side - KERNEL + 1, half = wide / 2;
    /* gx is a convolution of gz with zeros around it, by the weights turned round. */
    const int pad = gx ? KERNEL - 1 : 0, padded = wide + 2 * pad;
    vec gz[padded * padded], sums[TAPS * c_in], turned[TAPS * CHANNELS], gbias = {0};
    memset(sums, 0, sizeof sums);
    memset(gz, 0, sizeof gz);
    if (gx)
        for (int o = 0; o < CHANNELS; o++)
            for (int k = 0; k < TAPS; k++)
                for (int c = 0; c < CHANNELS; c++)
                    turned[(TAPS - 1 - k) * CHANNELS + o][c] = weights[(o * TAPS + k) * c_in + c];
    for (int m = 0; m < n; m++, x += side * side * c_in) {
        for (int y = 0; y < half; y++)
            for (int s = 0; s < half; s++, g += CHANNELS, place += CHANNELS) {
                vec value;
                ivec at;
                memcpy(&value, g, sizeof value);
                for (int o = 0; o < CHANNELS; o++) at[o] = place[o];
                gbias += pick(at == all(CUT_OFF), (vec){0}, value);
                for (int q = 0; q < 4; q++)
                    gz[(2 * y + q / 2 + pad) * padded + 2 * s + q % 2 + pad] =
                        pick(at == all(q), value, (vec){0});
            }
        for (int i = 0; i < KERNEL; i++)
            for (int first = 0; first < KERNEL * c_in; first += block) {
                vec *to = sums + i * KERNEL * c_in + first, sum[block];
                for (int p = 0; p < block; p++) sum[p] = to[p];
                for (int y = 0; y < wide; y++)
                    for (int s = 0; s < wide; s++) {
                        const vec value = gz[(y + pad) * padded + s + pad];
                        const float *from = x + ((y + i) * side + s) * c_in + first;
                        for (int p = 0; p < block; p++) sum[p] += from[p] * value;
                    }
                for (int p = 0; p < block; p++) to[p] = sum[p];
            }
        if (gx)
            for (int y = 0; y < side; y++, gx += side * CHANNELS) {
                vec row[side];
                convolve((const float *)(gz + y * padded), padded, CHANNELS, turned, (vec){0}, row, side);
                memcpy(gx, row, sizeof row);
            }
    }
    memcpy(gb, &gbias, sizeof gbias);
    for (int o = 0; o < CHANNELS; o++)
        for (int k = 0; k < TAPS * c_in; k++) gw[o * TAPS * c_in + k] = sums[k][o];
}

/* SimpleCNN's first layer, images (N, 32, 32, 3), and its second, (N, 14, 14, 16). */
void forward_3(int n, const float *x, const float *w, const float *b, float *out, int8_t *place)
{
    forward(32, 3, 14, n, x, w, b, out, place);
}

void forward_16(int n, const float *x, const float *w, const float *b, float *out, int8_t *place)
{
    forward(14, 16, 10, n, x, w, b, out, place);
}

void backward_3(int n, const float *x, const float *w, const int8_t *place, const float *g,
                float *gw, float *gb, float *gx)
{
    (void)gx;
    backward(32, 3, 15, n, x, w, place, g, gw, gb, 0);
}

void backward_16(int n, const float *x, const float *w, const int8_t *place, const float *g,
                 float *gw, float *gb, float *gx)
{
    backward(14, 16, 16, n, x, w, place, g, gw, gb, gx);
}
