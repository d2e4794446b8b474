/* SimpleCNN up to its last layer as one step, and its gradients.

   At batch 4 general operators spend more time on their own set-up than on arithmetic, so these
   are written for this network's shapes alone: two 5x5 convolutions to 16 channels, each with
   ReLU and 2x2 max-pooling, and two fully connected layers, each with ReLU and dropout.
   A convolution's 16 output channels are one vector. Tensors are contiguous: images (N, H, W, C),
   convolutions' weights (16, 5, 5, C), their results (N, h, w, 16). `place` says which of the
   four pixels was the largest, -1 where ReLU cut it off. `kept` is what dropout multiplies by. */

/* GCC would keep pixels for the next one, at the price of more moves than it saves loads. */
#pragma GCC optimize("no-predictive-commoning")

#include <stdint.h>
#include <string.h>

enum { CHANNELS = 16, KERNEL = 5, TAPS = KERNEL * KERNEL, CUT_OFF = -1 };
enum { SIDE = 32, COLOURS = 3, SIDE1 = 14, SIDE2 = 5, FC1 = 120, FC2 = 84, DROPPED = FC1 + FC2 };
enum { MAP1 = SIDE1 * SIDE1 * CHANNELS, PIXELS2 = SIDE2 * SIDE2, MAP2 = PIXELS2 * CHANNELS };

typedef float eight __attribute__((vector_size(32)));
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

/* The gradient of an image of few channels: gz, whose rows are `padded` long, convolved with the
   weights turned round. A vector is neighbouring pixels of a row here. */
INLINE void image_gradient(int side, int c_in, const vec *gz, int padded, const float *weights,
                           float *gx)
{
    enum { ROWS = 4 }; /* at once */
    float planes[CHANNELS][padded * padded];
    for (int k = 0; k < padded * padded; k++)
        for (int o = 0; o < CHANNELS; o++) planes[o][k] = gz[k][o];
    for (int y = 0; y < side; y += ROWS)
        for (int s = 0; s < side; s += CHANNELS) {
            vec sum[ROWS * c_in];
            memset(sum, 0, sizeof sum);
            for (int o = 0; o < CHANNELS; o++)
                for (int i = 0; i < KERNEL; i++)
                    for (int j = 0; j < KERNEL; j++) {
                        const float *w = weights + ((o + 1) * TAPS - 1 - i * KERNEL - j) * c_in;
                        for (int r = 0; r < ROWS; r++) {
                            vec v;
                            memcpy(&v, planes[o] + (y + r + i) * padded + s + j, sizeof v);
                            for (int c = 0; c < c_in; c++) sum[r * c_in + c] += v * w[c];
                        }
                    }
            for (int q = 0; q < ROWS * c_in; q++)
                for (int p = 0; p < CHANNELS; p++)
                    gx[((y + q / c_in) * side + s + p) * c_in + q % c_in] = sum[q][p];
        }
}

/* Gradients: g of the result, gw of the weights and gb of the biases unless gw is NULL, and gx
   of the images unless it is NULL. block: how many of a row's 5 * c_in values of x the loop over
   pixels keeps sums for. */
INLINE void backward(int side, int c_in, int block, int n, const float *x, const float *weights,
                     const int8_t *place, const float *g, float *gw, float *gb, float *gx)
{
    /* gx is a convolution of gz, with `pad` zeros around it, by the weights turned round. */
    const int wide = side - KERNEL + 1, half = wide / 2;
    const int pad = gx ? KERNEL - 1 : 0, padded = wide + 2 * pad;
    vec gz[padded * padded], sums[TAPS * c_in], turned[TAPS * CHANNELS], gbias = {0};
    memset(sums, 0, sizeof sums);
    memset(gz, 0, sizeof gz);
    for (int o = 0; gx && c_in == CHANNELS && o < CHANNELS; o++)
        for (int k = 0; k < TAPS; k++)
            for (int c = 0; c < c_in; c++)
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
        for (int i = 0; gw && i < KERNEL; i++)
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
        if (gx && c_in != CHANNELS) image_gradient(side, c_in, gz, padded, weights, gx);
        for (int y = 0; gx && c_in == CHANNELS && y < side; y++) {
            vec row[side];
            convolve((const float *)(gz + y * padded), padded, CHANNELS, turned, (vec){0}, row, side);
            memcpy(gx + y * side * CHANNELS, row, sizeof row);
        }
        gx += gx ? side * side * c_in : 0;
    }
    if (!gw) return;
    memcpy(gb, &gbias, sizeof gbias);
    for (int o = 0; o < CHANNELS; o++)
        for (int k = 0; k < TAPS * c_in; k++) gw[o * TAPS * c_in + k] = sums[k][o];
}

/* out = max(0, x w' + b) * kept; no dropout where kept is NULL. */
INLINE void connected(int inputs, int outputs, int n, const float *x, const float *w, const float *b,
                      const float *kept, float *out)
{
    enum { AT_ONCE = 4 }; /* outputs, whose sums don't wait for each other */
    for (int m = 0; m < n; m++, x += inputs, out += outputs, kept += kept ? DROPPED : 0)
        for (int o = 0; o < outputs; o += AT_ONCE) {
            eight sum[AT_ONCE] = {0};
            for (int k = 0; k < inputs; k += 8)
                for (int p = 0; p < AT_ONCE; p++) {
                    eight a, c;
                    memcpy(&a, x + k, sizeof a);
                    memcpy(&c, w + (o + p) * inputs + k, sizeof c);
                    sum[p] += a * c;
                }
            for (int p = 0; p < AT_ONCE; p++) {
                float z = b[o + p];
                for (int k = 0; k < 8; k++) z += sum[p][k];
                out[o + p] = (z <= 0 ? 0 : z) * (kept ? kept[o + p] : 1); /* NaN stays */
            }
        }
}

/* Gradients: gw of the weights and gb of the biases unless gw is NULL, and gx. */
INLINE void connected_backward(int inputs, int outputs, int n, const float *x, const float *w,
                               const float *kept, const float *out, const float *g, float *gw,
                               float *gb, float *gx)
{
    memset(gx, 0, sizeof *gx * n * inputs);
    if (gw) {
        memset(gw, 0, sizeof *gw * inputs * outputs);
        memset(gb, 0, sizeof *gb * outputs);
    }
    for (int m = 0; m < n; m++, x += inputs, gx += inputs, kept += kept ? DROPPED : 0)
        for (int o = 0; o < outputs; o++, out++, g++) {
            const float gz = *out == 0 ? 0 : *g * (kept ? kept[o] : 1);
            if (gz == 0) continue; /* most are cut off or dropped */
            for (int k = 0; k < inputs; k++) gx[k] += gz * w[o * inputs + k];
            if (!gw) continue;
            gb[o] += gz;
            for (int k = 0; k < inputs; k++) gw[o * inputs + k] += gz * x[k];
        }
}

/* What the backward pass needs of the forward one, behind each other: the first convolution's
   result, the second's, the same with channels before pixels, and the first layer's. */
INLINE float *map1(float *saved) { return saved; }
INLINE float *map2(float *saved, int n) { return map1(saved) + n * MAP1; }
INLINE float *flat(float *saved, int n) { return map2(saved, n) + n * MAP2; }
INLINE float *fc1(float *saved, int n) { return flat(saved, n) + n * MAP2; }
int saved_floats(void) { return MAP1 + 2 * MAP2 + FC1; } /* for each image */
int saved_places(void) { return MAP1 + MAP2; }

static void hidden_part(int n, const float *x, const float *w1, const float *b1, const float *w2,
                        const float *b2, const float *w3, const float *b3, const float *w4,
                        const float *b4, const float *kept, float *saved, int8_t *places, float *out)
{
    float *to = flat(saved, n);
    forward(SIDE, COLOURS, 14, n, x, w1, b1, map1(saved), places);
    forward(SIDE1, CHANNELS, 10, n, map1(saved), w2, b2, map2(saved, n), places + n * MAP1);
    for (const float *from = map2(saved, n); from < flat(saved, n); from += MAP2, to += MAP2)
        for (int k = 0; k < PIXELS2; k++)
            for (int o = 0; o < CHANNELS; o++) to[o * PIXELS2 + k] = from[k * CHANNELS + o];
    connected(MAP2, FC1, n, flat(saved, n), w3, b3, kept, fc1(saved, n));
    connected(FC1, FC2, n, fc1(saved, n), w4, b4, kept ? kept + FC1 : 0, out);
}

static void hidden_backward_part(int n, const float *x, const float *w1, const float *w2,
                                 const float *w3, const float *w4, const float *kept, float *saved,
                                 const int8_t *places, const float *out, const float *g,
                                 float *scratch, float *gw1, float *gb1, float *gw2, float *gb2,
                                 float *gw3, float *gb3, float *gw4, float *gb4, float *gx)
{
    connected_backward(FC1, FC2, n, fc1(saved, n), w4, kept ? kept + FC1 : 0, out, g, gw4, gb4,
                       fc1(scratch, n));
    connected_backward(MAP2, FC1, n, flat(saved, n), w3, kept, fc1(saved, n), fc1(scratch, n), gw3,
                       gb3, flat(scratch, n));
    const float *from = flat(scratch, n);
    for (float *to = map2(scratch, n); to < flat(scratch, n); from += MAP2, to += MAP2)
        for (int k = 0; k < PIXELS2; k++)
            for (int o = 0; o < CHANNELS; o++) to[k * CHANNELS + o] = from[o * PIXELS2 + k];
    backward(SIDE1, CHANNELS, 16, n, map1(saved), w2, places + n * MAP1, map2(scratch, n), gw2, gb2,
             map1(scratch));
    if (gx) /* one of two: the compiler drops what a gradient that nobody wants would need */
        backward(SIDE, COLOURS, 15, n, x, w1, places, map1(scratch), gw1, gb1, gx);
    else
        backward(SIDE, COLOURS, 15, n, x, w1, places, map1(scratch), gw1, gb1, 0);
}

/* The n images go through all layers `part` at a time, the parts side by side where there are
   threads for it. `saved`, `places` and `scratch` then hold one part behind the other. */
enum { IMAGE = SIDE * SIDE * COLOURS };
INLINE int count(int n, int part, int first) { return n - first < part ? n - first : part; }

/* Images x (N, 32, 32, 3) to features out (N, 84). kept: (N, 120 + 84), or NULL. */
void hidden(int n, int part, const float *x, const float *w1, const float *b1, const float *w2,
            const float *b2, const float *w3, const float *b3, const float *w4, const float *b4,
            const float *kept, float *saved, int8_t *places, float *out)
{
#pragma omp parallel for if (part < n)
    for (int m = 0; m < n; m += part)
        hidden_part(count(n, part, m), x + m * IMAGE, w1, b1, w2, b2, w3, b3, w4, b4,
                    kept ? kept + m * DROPPED : 0, saved + m * saved_floats(),
                    places + m * saved_places(), out + m * FC2);
}

/* Gradients from g, that of out (N, 84): of all parameters unless gw1 is NULL, which takes part
   = n, and of the images unless gx is NULL. scratch is as large as saved, and holds the gradients
   of what lies there. */
void hidden_backward(int n, int part, const float *x, const float *w1, const float *w2,
                     const float *w3, const float *w4, const float *kept, float *saved,
                     const int8_t *places, const float *out, const float *g, float *scratch,
                     float *gw1, float *gb1, float *gw2, float *gb2, float *gw3, float *gb3,
                     float *gw4, float *gb4, float *gx)
{
#pragma omp parallel for if (part < n)
    for (int m = 0; m < n; m += part)
        hidden_backward_part(count(n, part, m), x + m * IMAGE, w1, w2, w3, w4,
                             kept ? kept + m * DROPPED : 0, saved + m * saved_floats(),
                             places + m * saved_places(), out + m * FC2, g + m * FC2,
                             scratch + m * saved_floats(), gw1, gb1, gw2, gb2, gw3, gb3, gw4, gb4,
                             gx ? gx + m * IMAGE : 0);
}
