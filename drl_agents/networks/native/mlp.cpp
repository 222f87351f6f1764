// Fully connected layers with tanh or ReLU between them, forward and backward, in float32 on a CPU, for P members.
//
// A library multiplies one matrix after the other, and each goes to memory and back before the next. Here blocks of
// kRows samples go through all layers while the caches hold them, and what lies between the layers (bias, activation,
// its derivative) is done to the sums while they are in registers.
//
// Every sum has a fixed order, which depends on the number of threads and on nothing else.
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "product.h"

namespace {

constexpr long kRows = 96;

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

// What one thread goes through of a pass: samples first_row .. end_row of members first .. end.
struct Share {
  long first, end, first_row, end_row;
};

// The threads of a pass. Each takes as many whole members as the others; of the members that are left over each takes
// some of the samples.
struct Team {
  long thread = omp_get_thread_num(), threads = omp_get_num_threads();  // fewer than were asked for, it may be

  long begin(long of) const { return of * thread / threads; }
  long end(long of) const { return of * (thread + 1) / threads; }
  long whole_members(const Net& net) const { return net.members / threads * threads; }
  Share whole(const Net& net) const {
    return {begin(whole_members(net)), end(whole_members(net)), 0, net.samples};
  }
  Share part(const Net& net, long first, long end_member) const {
    const long of = net.samples / net.each;
    return {first, end_member, begin(of) * net.each, end(of) * net.each};
  }
};

void forward_share(const Net& net, const Share& share, float* out) {
  const size_t depth = net.layers.size();
  size_t size = 0;
  for (const Layer& layer : net.layers) size += panels_size(layer.in, layer.out) + whole(layer.out);
  float* const memory = scratch(size + (net.hidden ? 0 : kRows * net.row));
  std::vector<const float*> weights(depth), biases(depth);
  for (long p = share.first; p < share.end; p++) {
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

// The gradients of the share's members over its samples, one member's after the other.
void backward_share(const Net& net, const Share& share, const float* grad_out, float* grads, float* grad_x,
                    float* grad_first) {
  const size_t depth = net.layers.size();
  long widest = 0;
  size_t sums_size = 0, weights_size = 0;
  for (const Layer& layer : net.layers) {
    widest = std::max({widest, spaced(layer.in), spaced(layer.out)});
    sums_size += (layer.in + 1) * spaced(layer.out);
    weights_size += panels_size(layer.out, layer.in);
  }
  float* const memory = scratch(sums_size + weights_size + 2 * kRows * widest);
  float* const block = memory + sums_size + weights_size;
  std::vector<const float*> weights(depth);
  for (long p = share.first; p < share.end; p++) {
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
    float* to = grads + (p - share.first) * net.grads;
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
  {
    const Team team;
    forward_share(net, team.whole(net), out);
    forward_share(net, team.part(net, team.whole_members(net), net.members), out);
  }
}

// grad_out: (P, n, last width). grads: (P, .), each layer's weight and, where it has one, its bias. grad_x: (P, n, first
// width) and grad_first: (P, n / each, width of the first layer), or null.
extern "C" void backward(const int64_t* call, const float* grad_out, float* grads, float* grad_x, float* grad_first) {
  const Net net(call);
  static thread_local std::vector<float> kept;  // from call to call
  kept.resize(std::max<size_t>(kept.size(), net.threads * net.grads));
  float* const parts = kept.data();
#pragma omp parallel num_threads(net.threads) if (net.threads > 1)
  {
    const Team team;
    const Share whole = team.whole(net);
    backward_share(net, whole, grad_out, grads + whole.first * net.grads, grad_x, grad_first);
    for (long p = team.whole_members(net); p < net.members; p++) {
      float* const own = parts + team.thread * net.grads;
      backward_share(net, team.part(net, p, p + 1), grad_out, own, grad_x, grad_first);
#pragma omp barrier
      for (long i = team.begin(net.grads); i < team.end(net.grads); i++) {
        float sum = parts[i];
        for (long other = 1; other < team.threads; other++) sum += parts[other * net.grads + i];
        grads[p * net.grads + i] = sum;
      }
#pragma omp barrier  // before a part is written to again
    }
  }
}
