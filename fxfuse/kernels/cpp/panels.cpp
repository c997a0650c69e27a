// A linear layer for AVX-512, in fp32 arithmetic, straight from fp32, bf16 or fp16 weights. fxfuse/kernels/panels.py
// compiles and calls this.
//
// The weight is taken in panels of WIDTH of its rows and DEPTH of its columns, transposed and widened into memory that
// stays in the first cache, so no second copy of it is made. Sums are cut at every DEPTH, which keeps their error below
// that of one long sum.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512VL__)
#error "these kernels are for AVX-512"
#endif

namespace {

constexpr int LANES = 16, WIDTH = 2 * LANES;
constexpr int TILE = 14;  // rows of x: with two vectors of columns, sums take 28 of the 32 registers
constexpr int64_t DEPTH = 96;  // a panel takes 12 KiB: two of them, the next one being fetched, fit the first cache
enum Type : int64_t { FP32, BF16, FP16, PANELS };  // as in panels.py

inline __mmask16 lanes_below(int64_t count) {
  return count >= LANES ? 0xFFFF : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

template <int64_t TYPE>
inline __m512 widened(const void* at, __mmask16 mask) {
  if (TYPE == FP32) return _mm512_maskz_loadu_ps(mask, at);
  const __m256i half = _mm256_maskz_loadu_epi16(mask, at);
  if (TYPE == FP16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline void transpose(__m512 (&r)[LANES]) {
  __m512 t[LANES];
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i += 4) {
    r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xEE);
    r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xDD);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xDD);
    r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xDD);
  }
}

// (depth, ROWS) out of `rows` rows of `depth` columns, zeros where there are no rows; what is read next lies `ahead`
// bytes further
template <int64_t TYPE, int ROWS>
inline void turn(const char* from, int64_t row_bytes, int64_t rows, int64_t depth, int64_t ahead, float* to,
                 int64_t to_row) {
  constexpr int64_t size = TYPE == FP32 ? 4 : 2;
  const __mmask16 kept = lanes_below(ROWS == TILE ? rows : LANES);
  for (int64_t k = 0; k < depth; k += LANES) {
    const __mmask16 mask = lanes_below(depth - k);
    const int64_t count = std::min<int64_t>(LANES, depth - k);
    __m512 r[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {
      const char* at = from + i * row_bytes + k * size;
      r[i] = i < rows ? widened<TYPE>(at, mask) : _mm512_setzero_ps();
      if (ahead && i < rows) _mm_prefetch(at + ahead, _MM_HINT_T1);
    }
    transpose(r);
    float* at = to + k * to_row;
    if (count == LANES) {
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) _mm512_mask_storeu_ps(at + i * to_row, kept, r[i]);
    } else {
      for (int64_t i = 0; i < count; ++i) _mm512_mask_storeu_ps(at + i * to_row, kept, r[i]);
    }
  }
}

template <int64_t TYPE>
void fill(const char* weight, int64_t row_bytes, int64_t rows, int64_t depth, int64_t ahead, float* panel) {
  turn<TYPE, LANES>(weight, row_bytes, rows, depth, ahead, panel, WIDTH);
  turn<TYPE, LANES>(weight + LANES * row_bytes, row_bytes, rows - LANES, depth, ahead, panel + LANES, WIDTH);
}

// y (M, columns) = or += a (depth, M), transposed, times a panel (depth, WIDTH); meanwhile fetches what lies at
// `next`
template <int M>
void tile(const float* a, const float* panel, int64_t depth, float* y, int64_t y_row, int64_t columns, bool more,
          const float* bias, const float* next, int64_t step) {
  __m512 sum[M][2];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) sum[m][0] = sum[m][1] = _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; ++k, next += step) {
    const __m512 b0 = _mm512_loadu_ps(panel + k * WIDTH), b1 = _mm512_loadu_ps(panel + k * WIDTH + LANES);
    _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(next + LANES), _MM_HINT_T0);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const __m512 x = _mm512_set1_ps(a[k * M + m]);
      sum[m][0] = _mm512_fmadd_ps(x, b0, sum[m][0]);
      sum[m][1] = _mm512_fmadd_ps(x, b1, sum[m][1]);
    }
  }
#pragma GCC unroll 2
  for (int part = 0; part < 2; ++part) {
    const __mmask16 mask = lanes_below(columns - part * LANES);
    const __m512 add = bias ? _mm512_maskz_loadu_ps(mask, bias + part * LANES) : _mm512_setzero_ps();
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      float* to = y + m * y_row + part * LANES;
      const __m512 before = more ? _mm512_maskz_loadu_ps(mask, to) : add;
      _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(before, sum[m][part]));
    }
  }
}

// one row of x: rows of the weight as they lie, four at a time
template <int64_t TYPE>
void dots(const float* x, const char* weight, int64_t row_bytes, int64_t rows, int64_t depth, const float* bias,
          float* y) {
  constexpr int64_t size = TYPE == FP32 ? 4 : 2;
  for (int64_t n = 0; n < rows; n += 4) {
    const char* row[4];
    __m512 sum[4][2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      row[i] = weight + std::min(n + i, rows - 1) * row_bytes;
      sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    }
    for (int64_t k = 0; k < depth; k += 2 * LANES) {
      const __mmask16 mask[2] = {lanes_below(depth - k), lanes_below(depth - k - LANES)};
#pragma GCC unroll 2
      for (int part = 0; part < 2; ++part) {
        const __m512 a = _mm512_maskz_loadu_ps(mask[part], x + k + part * LANES);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
          sum[i][part] =
              _mm512_fmadd_ps(a, widened<TYPE>(row[i] + (k + part * LANES) * size, mask[part]), sum[i][part]);
      }
    }
    for (int i = 0; i < 4 && n + i < rows; ++i)
      y[n + i] = _mm512_reduce_add_ps(_mm512_add_ps(sum[i][0], sum[i][1])) + (bias ? bias[n + i] : 0.0f);
  }
}

typedef void (*Tile)(const float*, const float*, int64_t, float*, int64_t, int64_t, bool, const float*, const float*,
                     int64_t);
const Tile TILES[TILE + 1] = {nullptr, tile<1>, tile<2>,  tile<3>,  tile<4>,  tile<5>,  tile<6>, tile<7>,
                              tile<8>, tile<9>, tile<10>, tile<11>, tile<12>, tile<13>, tile<14>};

}  // namespace

// y (m, n) = x (m, k) times a weight (n, k), transposed, plus bias (n); m and n are above 0. PANELS: the weight lies as
// panels (n / WIDTH, k, WIDTH). `ordered` has room for m x k; every `row_bytes` a row of the weight begins.
extern "C" void fxfuse_linear(const float* x, const void* weight, int64_t type, int64_t row_bytes, const float* bias,
                              float* y, float* ordered, int64_t m, int64_t n, int64_t k, int64_t threads) {
  const int64_t parts = std::max<int64_t>(1, (k + DEPTH - 1) / DEPTH);
  const int64_t each = ((k + parts - 1) / parts + LANES - 1) / LANES * LANES;  // at most DEPTH, a multiple of LANES
  const int64_t tiles = (m + TILE - 1) / TILE, panels = (n + WIDTH - 1) / WIDTH;
  if (m == 1 && type != PANELS) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t p = 0; p < panels; ++p) {
      const char* at = static_cast<const char*>(weight) + p * WIDTH * row_bytes;
      const int64_t rows = std::min<int64_t>(WIDTH, n - p * WIDTH);
      const float* add = bias ? bias + p * WIDTH : nullptr;
      if (type == FP32) dots<FP32>(x, at, row_bytes, rows, k, add, y + p * WIDTH);
      if (type == BF16) dots<BF16>(x, at, row_bytes, rows, k, add, y + p * WIDTH);
      if (type == FP16) dots<FP16>(x, at, row_bytes, rows, k, add, y + p * WIDTH);
    }
    return;
  }
  const auto row_of = [=](int64_t t) { return t * m / tiles; };
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t row = row_of(t), rows = row_of(t + 1) - row;
      for (int64_t from = 0; from < k; from += each) {
        const int64_t depth = std::min(each, k - from);
        turn<FP32, TILE>(reinterpret_cast<const char*>(x + row * k + from), k * 4, rows, depth, 0,
                         ordered + from * m + row * depth, rows);
      }
    }
#pragma omp for schedule(static)
    for (int64_t p = 0; p < panels; ++p) {
      alignas(64) float own[DEPTH * WIDTH];
      const int64_t columns = std::min<int64_t>(WIDTH, n - p * WIDTH);
      int64_t from = 0;
      do {
        const int64_t depth = std::min(each, k - from), size = type == FP32 ? 4 : 2;
        const bool last = from + each >= k;
        const char* at = static_cast<const char*>(weight) + p * WIDTH * row_bytes + from * size;
        const int64_t ahead = !last ? depth * size : p + 1 < panels ? WIDTH * row_bytes - from * size : 0;
        const float* panel = own;
        if (type == FP32) fill<FP32>(at, row_bytes, columns, depth, ahead, own);
        if (type == BF16) fill<BF16>(at, row_bytes, columns, depth, ahead, own);
        if (type == FP16) fill<FP16>(at, row_bytes, columns, depth, ahead, own);
        if (type == PANELS) panel = static_cast<const float*>(weight) + (p * k + from) * WIDTH;
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t row = row_of(t), rows = row_of(t + 1) - row;
          const bool fetch = t == 0 && type == PANELS && !(last && p + 1 == panels);
          TILES[rows](ordered + from * m + row * depth, panel, depth, y + row * n + p * WIDTH, n, columns, from > 0,
                      bias ? bias + p * WIDTH : nullptr, panel + (fetch ? depth * WIDTH : 0), fetch ? WIDTH : 0);
        }
        from += each;
      } while (from < k);
    }
  }
}
