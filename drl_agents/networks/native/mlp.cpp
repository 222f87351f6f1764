// Fully connected layers with tanh or ReLU between them, forward and backward, in float32 on a CPU, for P members.
//
// A library multiplies one matrix after the other, and each goes to memory and back before the next. Here blocks of
// kRows samples go through all layers while the caches hold them, and what lies between the layers (bias, activation,
// its derivative) is done to the sums while they are in registers. A product is the outer-product kernel of Goto and van
// de Geijn ("Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008) with tiles of kTile rows and two
// vectors of columns.
//
// Every sum has a fixed order, which depends on the number of threads and on nothing else.
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

// Floats in a vector register, and rows of a tile: as many as leave registers for two vectors of columns and a factor.
#ifndef LANES
#if defined(__AVX512F__)
#define LANES 16
#define TILE 12
#elif defined(__AVX__)
#define LANES 8
#define TILE 6
#else
#define LANES 4
#define TILE 8
#endif
#endif

namespace {

constexpr long kLanes = LANES, kTile = TILE, kVectors = 2, kColumns = kVectors * kLanes, kRows = 96;

typedef float Vector __attribute__((vector_size(LANES * 4)));

inline Vector load(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// As `load`, of which the last `missing` lanes are not there to be read: zeros.
inline Vector load_part(const float* from, long missing) {
  if (missing <= 0) return load(from);
  Vector v{};
  std::memcpy(&v, from, sizeof v - missing * 4);
  return v;
}

inline void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }

inline void store_part(float* to, Vector v, long missing) {
  std::memcpy(to, &v, sizeof v - std::max(missing, 0L) * 4);
}

inline Vector all(float x) { return x - Vector{}; }

// Of a lane that is not a number neither bound is chosen: it stays one.
inline Vector at_least(Vector x, float low) { return all(low) > x ? all(low) : x; }
inline Vector at_most(Vector x, float high) { return all(high) < x ? all(high) : x; }

// The quotient of polynomials of drl_agents/networks/activation.py.
inline Vector tanh_of(Vector x) {
  constexpr float end = 7.90531110763549805f;
  x = at_most(at_least(x, -end), end);
  const Vector square = x * x;
  Vector above = all(-2.76076847742355e-16f) * square + all(2.00018790482477e-13f);
  for (float c : {-8.60467152213735e-11f, 5.12229709037114e-08f, 1.48572235717979e-05f, 6.37261928875436e-04f,
                  4.89352455891786e-03f})
    above = above * square + all(c);
  Vector below = all(1.19825839466702e-06f) * square + all(1.18534705686654e-04f);
  for (float c : {2.26843463243900e-03f, 4.89352518554385e-03f}) below = below * square + all(c);
  return x * above / below;
}

// sum_k a[i, k] b[k, columns] for M rows i and V vectors of columns, handed to out(row, column, vector). The rows of `b`
// lie `b_row` apart; a[i, k] is at a[i * a_row + k], or of a transposed one at a[k * a_row + i].
template <int M, int V, bool Transposed, class Out>
void tile(const float* a, long a_row, const float* b, long b_row, long depth, const Out& out, long row, long column) {
  Vector sums[M][V] = {};
  for (long k = 0; k < depth; k++) {
    Vector columns[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) columns[v] = load(b + k * b_row + v * kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < M; i++) {
      const Vector factor = all(Transposed ? a[k * a_row + i] : a[i * a_row + k]);
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) sums[i][v] += factor * columns[v];
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) out(row + i, column + v * kLanes, sums[i][v]);
}

// A tile of `rows` rows, which are at most M.
template <int M, int V, bool Transposed, class Out>
inline void tile_of(long rows, const float* a, long a_row, const float* b, long b_row, long depth, const Out& out,
                    long row, long column) {
  if constexpr (M > 0) {
    if (rows >= M)
      tile<M, V, Transposed>(a, a_row, b, b_row, depth, out, row, column);
    else
      tile_of<M - 1, V, Transposed>(rows, a, a_row, b, b_row, depth, out, row, column);
  }
}

// The product of a (rows, depth) and b (depth, columns), handed to out(row, column, vector) by vectors of which the last
// may pass the end of a row. b_at(column): where column `column` of `b` begins.
template <bool Transposed, class At, class Out>
void product(long rows, long columns, long depth, const float* a, long a_row, const At& b_at, long b_row,
             const Out& out) {
  for (long column = 0; column < columns; column += kColumns) {
    const float* b = b_at(column);
    const bool one = columns - column <= kLanes;
    for (long row = 0; row < rows; row += kTile) {
      const float* own = Transposed ? a + row : a + row * a_row;
      if (one)
        tile_of<kTile, 1, Transposed>(rows - row, own, a_row, b, b_row, depth, out, row, column);
      else
        tile_of<kTile, kVectors, Transposed>(rows - row, own, a_row, b, b_row, depth, out, row, column);
    }
  }
}

long whole(long size) { return (size + kLanes - 1) / kLanes * kLanes; }

// Floats of a row of at least `size`, an odd number of cache lines: rows an even number apart share few sets of a cache.
long spaced(long size) { return ((size + 15) / 16 | 1) * 16; }

long panels_size(long rows, long columns) { return (columns + kColumns - 1) / kColumns * kColumns * rows; }

// w (rows, columns) as panels of kColumns columns, their rows one after the other; behind the last column zeros.
void pack(const float* w, long rows, long columns, float* to) {
  for (long column = 0; column < columns; column += kColumns) {
    const long width = std::min(kColumns, columns - column);
    for (long row = 0; row < rows; row++, to += kColumns) {
      std::memcpy(to, w + row * columns + column, width * 4);
      std::fill(to + width, to + kColumns, 0.f);
    }
  }
}

// The transpose of w (columns, rows) as panels.
void pack_transposed(const float* w, long rows, long columns, float* to) {
  for (long column = 0; column < columns; column += kColumns, to += rows * kColumns)
    for (long c = 0; c < kColumns; c++)
      for (long row = 0; row < rows; row++)
        to[row * kColumns + c] = column + c < columns ? w[(column + c) * rows + row] : 0.f;
}

// This thread's own memory, which is kept from call to call.
float* scratch(size_t size) {
  static thread_local std::vector<float> own;
  if (own.size() < size) own.resize(size);
  return own.data();
}

struct Layer {
  long in, out;         // W: (in, out)
  const float* weight;  // (P, in, out), members weight_step apart
  long weight_step;
  const float* bias;  // (P, 1, out); null: none
  long bias_step;
  long at = 0;    // where its outputs begin in a row of `hidden`
  long grad = 0;  // where its gradient begins among a member's
};

// What both directions are given, as 64-bit numbers; pointers among them. See mlp.py.
struct Net {
  long threads, members, samples, relu, each;
  const float *x, *first;
  float* hidden;  // what comes out of the layers before the last, for the gradient; null: not kept
  std::vector<Layer> layers;
  long row, grads;  // floats of a row of `hidden` and of a member's gradient

  explicit Net(const int64_t* call) {
    threads = call[0], members = call[1], samples = call[2], relu = call[4], each = call[5];
    x = (const float*)call[6], first = (const float*)call[7], hidden = (float*)call[8];
    const int64_t* own = call + 9;
    row = grads = 0;
    for (long l = 0; l < call[3]; l++, own += 6) {
      Layer layer{(long)own[0], (long)own[1], (const float*)own[2], (long)own[3], (const float*)own[4], (long)own[5]};
      layer.at = row, layer.grad = grads;
      row += whole(layer.out);
      grads += (layer.in + (layer.bias ? 1 : 0)) * layer.out;
      layers.push_back(layer);
    }
    row = spaced(row - whole(layers.back().out));
  }
};

// A thread's share: whole members where they come out even, or else some samples of every member.
struct Share {
  long thread, threads;
  bool members_whole;
  long first_member, end_member, first_row, end_row;

  explicit Share(const Net& net) {
    thread = omp_get_thread_num(), threads = omp_get_num_threads();  // fewer than were asked for, it may be
    members_whole = net.members % threads == 0 || net.members >= 4 * threads;
    const long of = members_whole ? net.members : net.samples / net.each;
    const long from = of * thread / threads, to = of * (thread + 1) / threads;
    first_member = members_whole ? from : 0, end_member = members_whole ? to : net.members;
    first_row = members_whole ? 0 : from * net.each, end_row = members_whole ? net.samples : to * net.each;
  }
};

void forward_share(const Net& net, const Share& share, float* out) {
  const size_t depth = net.layers.size();
  size_t size = 0;
  for (const Layer& layer : net.layers) size += panels_size(layer.in, layer.out) + whole(layer.out);
  float* const memory = scratch(size + (net.hidden ? 0 : kRows * net.row));
  std::vector<const float*> weights(depth), biases(depth);
  for (long p = share.first_member; p < share.end_member; p++) {
    float* free = memory;
    for (size_t l = 0; l < depth; l++) {
      const Layer& layer = net.layers[l];
      pack(layer.weight + p * layer.weight_step, layer.in, layer.out, free);
      weights[l] = free, free += panels_size(layer.in, layer.out);
      std::fill(free, free + whole(layer.out), 0.f);
      if (layer.bias) std::memcpy(free, layer.bias + p * layer.bias_step, layer.out * 4);
      biases[l] = free, free += whole(layer.out);
    }
    for (long row = share.first_row; row < share.end_row; row += kRows) {
      const long rows = std::min(kRows, share.end_row - row);
      const float* in = net.x + (p * net.samples + row) * net.layers[0].in;
      long in_row = net.layers[0].in;
      float* const kept = net.hidden ? net.hidden + (p * net.samples + row) * net.row : memory + size;
      for (size_t l = 0; l < depth; l++) {
        const Layer& layer = net.layers[l];
        const float *bias = biases[l], *panels = weights[l];
        const auto at = [&](long column) { return panels + column * layer.in; };
        if (l + 1 == depth) {
          float* to = out + (p * net.samples + row) * layer.out;
          product<false>(rows, layer.out, layer.in, in, in_row, at, kColumns, [&](long i, long j, Vector sums) {
            store_part(to + i * layer.out + j, sums + load(bias + j), j + kLanes - layer.out);
          });
          break;
        }
        float* to = kept + layer.at;
        const float* first = l == 0 ? net.first : nullptr;
        const auto run = [&](auto activation) {
          product<false>(rows, layer.out, layer.in, in, in_row, at, kColumns, [&](long i, long j, Vector sums) {
            sums += load(bias + j);
            if (first) {
              const long market = (p * net.samples + row + i) / net.each;
              sums += load_part(first + market * layer.out + j, j + kLanes - layer.out);
            }
            store(to + i * net.row + j, activation(sums));
          });
        };
        if (net.relu)
          run([](Vector v) { return at_least(v, 0.f); });
        else
          run([](Vector v) { return tanh_of(v); });
        in = to, in_row = net.row;
      }
    }
  }
}

// The gradient of a block's samples with respect to layer l's inputs, from `grad` with respect to its sums.
void pull_back(const Net& net, size_t l, const float* panels, long rows, const float* grad, long grad_row,
               const float* in, float* to, long to_row) {
  const Layer& layer = net.layers[l];
  const auto at = [&](long column) { return panels + column * layer.out; };
  const auto run = [&](auto derivative) {
    product<false>(rows, layer.in, layer.out, grad, grad_row, at, kColumns, [&](long i, long j, Vector sums) {
      store(to + i * to_row + j, derivative(sums, load(in + i * net.row + j)));
    });
  };
  if (l == 0)  // of the net's inputs, which nothing was done to
    product<false>(rows, layer.in, layer.out, grad, grad_row, at, kColumns, [&](long i, long j, Vector sums) {
      store_part(to + i * to_row + j, sums, j + kLanes - layer.in);
    });
  else if (net.relu)
    run([](Vector grad, Vector y) { return y <= all(0.f) ? Vector{} : grad; });
  else
    run([](Vector grad, Vector y) { return grad * (all(1.f) - y * y); });
}

void backward_share(const Net& net, const Share& share, const float* grad_out, float* grads, float* grad_x,
                    float* grad_first, std::vector<float*>& parts) {
  const size_t depth = net.layers.size();
  long widest = 0;
  size_t sums_size = 0, weights_size = 0;
  for (const Layer& layer : net.layers) {
    widest = std::max({widest, spaced(layer.in), spaced(layer.out)});
    sums_size += (layer.in + 1) * spaced(layer.out);
    weights_size += panels_size(layer.out, layer.in);
  }
  const size_t part_size = share.members_whole ? 0 : net.members * net.grads;
  float* const memory = scratch(sums_size + weights_size + 2 * kRows * widest + part_size);
  float *const block = memory + sums_size + weights_size, *const part = block + 2 * kRows * widest;
  parts[share.thread] = part;
  std::vector<const float*> weights(depth);
  for (long p = share.first_member; p < share.end_member; p++) {
    float *grad = block, *next = block + kRows * widest;
    std::fill(memory, memory + sums_size, 0.f);
    float* free = memory + sums_size;
    for (size_t l = grad_x ? 0 : 1; l < depth; l++) {
      const Layer& layer = net.layers[l];
      pack_transposed(layer.weight + p * layer.weight_step, layer.out, layer.in, free);
      weights[l] = free, free += panels_size(layer.out, layer.in);
    }
    for (long row = share.first_row; row < share.end_row; row += kRows) {
      const long rows = std::min(kRows, share.end_row - row), sample = p * net.samples + row;
      const Layer& last = net.layers.back();
      long grad_row = spaced(last.out);
      for (long i = 0; i < rows; i++) {
        std::memcpy(grad + i * grad_row, grad_out + (sample + i) * last.out, last.out * 4);
        std::fill(grad + i * grad_row + last.out, grad + (i + 1) * grad_row, 0.f);
      }
      float* sums = memory + sums_size;
      for (size_t l = depth; l-- > 0;) {
        const Layer& layer = net.layers[l];
        const long in_row = l ? net.row : layer.in, sums_row = spaced(layer.out);
        const float* in = l ? net.hidden + sample * net.row + net.layers[l - 1].at : net.x + sample * layer.in;
        sums -= (layer.in + 1) * sums_row;
        product<true>(layer.in, layer.out, rows, in, in_row, [&](long column) { return grad + column; }, grad_row,
                      [&](long i, long j, Vector v) {
                        float* to = sums + i * sums_row + j;
                        store(to, load(to) + v);
                      });
        float* bias = sums + layer.in * sums_row;
        for (long i = 0; i < rows; i++)
          for (long j = 0; j < layer.out; j += kLanes)
            store(bias + j, load(bias + j) + load(grad + i * grad_row + j));
        if (l == 0 && grad_first)
          for (long i = 0; i < rows; i++) {
            float* to = grad_first + (sample + i) / net.each * layer.out;
            if ((sample + i) % net.each == 0) std::fill(to, to + layer.out, 0.f);
            for (long j = 0; j < layer.out; j++) to[j] += grad[i * grad_row + j];
          }
        if (l == 0 && !grad_x) break;
        const long next_row = l ? spaced(layer.in) : layer.in;
        pull_back(net, l, weights[l], rows, grad, grad_row, in, l ? next : grad_x + sample * layer.in, next_row);
        std::swap(grad, next), grad_row = next_row;
      }
    }
    float* to = (share.members_whole ? grads : part) + p * net.grads;
    const float* sums = memory;
    for (const Layer& layer : net.layers) {
      const long own = layer.in + (layer.bias ? 1 : 0);
      for (long i = 0; i < own; i++)
        std::memcpy(to + layer.grad + i * layer.out, sums + i * spaced(layer.out), layer.out * 4);
      sums += (layer.in + 1) * spaced(layer.out);
    }
  }
}

}  // namespace

// Floats of a row of `hidden` for layers of these widths.
extern "C" int64_t hidden_row(const int64_t* widths, int64_t count) {
  long row = 0;
  for (int64_t i = 0; i < count; i++) row += whole(widths[i]);
  return spaced(row);
}

// out: (P, n, last width). hidden, where there is one: (P, n, hidden_row).
extern "C" void forward(const int64_t* call, float* out) {
  const Net net(call);
#pragma omp parallel num_threads(net.threads) if (net.threads > 1)
  forward_share(net, Share(net), out);
}

// grad_out: (P, n, last width). grads: (P, .), each layer's weight and, where it has one, its bias. grad_x: (P, n, first
// width) and grad_first: (P, n / each, width of the first layer), or null.
extern "C" void backward(const int64_t* call, const float* grad_out, float* grads, float* grad_x, float* grad_first) {
  const Net net(call);
  std::vector<float*> parts(net.threads);
#pragma omp parallel num_threads(net.threads) if (net.threads > 1)
  {
    const Share share(net);
    backward_share(net, share, grad_out, grads, grad_x, grad_first, parts);
    if (!share.members_whole) {
#pragma omp barrier
      const long size = net.members * net.grads;
      for (long i = size * share.thread / share.threads; i < size * (share.thread + 1) / share.threads; i++) {
        float sum = parts[0][i];
        for (long other = 1; other < share.threads; other++) sum += parts[other][i];
        grads[i] = sum;
      }
#pragma omp barrier  // before anyone's next call takes its part for something else
    }
  }
}
