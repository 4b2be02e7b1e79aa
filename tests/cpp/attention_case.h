// One attention problem with all its tensors: random inputs, results full of NaN.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "tensor.h"

namespace torch_ext::test {

inline DType statistics_dtype(DType dtype) {
  return dtype == DType::Float64 ? DType::Float64 : DType::Float32;
}
inline double epsilon(DType dtype) {
  return dtype == DType::Float64   ? 0x1p-52
         : dtype == DType::Float32 ? 0x1p-23
         : dtype == DType::Float16 ? 0x1p-10
                                   : 0x1p-7;
}

struct Shape {
  int64_t batch, heads, key_heads, n, m, d, e;
};

// How the mask or bias is broadcast: the letters of (B, H, N, M) it has; "" = absent, "-" = one
// number for all.
struct Options {
  DType dtype = DType::Float32;
  Layout layout = Layout::kContiguous;
  std::string mask, bias;
  bool is_causal = false;
  double scale = 0.25;
  bool split_batch = false;
  bool wide_bias = false;  // float32 with a 16-bit query
};

struct Case {
  Shape shape;
  Options options;
  Tensor query, key, value, mask, bias;
  Tensor output, logsumexp, logsumexp_residual;
  Tensor grad_output, grad_logsumexp;
  Tensor grad_query, grad_key, grad_value, grad_bias;

  Case(const Shape& s, const Options& o, uint64_t seed = 9) : shape(s), options(o) {
    Random random(seed);
    const auto normal = [&] { return random.normal(); };
    const DType statistics = statistics_dtype(o.dtype);
    query = Tensor(o.dtype, {s.batch, s.heads, s.n, s.d}, o.layout).fill(normal);
    key = Tensor(o.dtype, {s.batch, s.key_heads, s.m, s.d}, o.layout).fill(normal);
    value = Tensor(o.dtype, {s.batch, s.key_heads, s.m, s.e}, o.layout).fill(normal);
    if (!o.mask.empty())
      mask = Tensor(DType::Bool, broadcast(o.mask), o.layout).fill([&] {
        return random.below(3) > 0;
      });
    if (!o.bias.empty()) {
      bias = Tensor(o.wide_bias ? statistics : o.dtype, broadcast(o.bias), o.layout).fill([&] {
        return random.below(8) ? random.normal() : -kInf;
      });
      grad_bias = Tensor(statistics, broadcast(o.bias));
    }
    output = Tensor(o.dtype, {s.batch, s.heads, s.n, s.e}, o.layout);
    grad_output = Tensor(o.dtype, {s.batch, s.heads, s.n, s.e}, o.layout).fill(normal);
    logsumexp = Tensor(statistics, {s.batch, s.heads, s.n, 1}, o.layout);
    logsumexp_residual = Tensor(statistics, {s.batch, s.heads, s.n, 1}, o.layout);
    grad_logsumexp = Tensor(statistics, {s.batch, s.heads, s.n, 1}, o.layout).fill(normal);
    grad_query = Tensor(o.dtype, query.sizes(), o.layout);
    grad_key = Tensor(o.dtype, key.sizes(), o.layout);
    grad_value = Tensor(o.dtype, value.sizes(), o.layout);
  }

  ForwardProblem forward_problem() const {
    ForwardProblem p;
    fill(p);
    p.output = view(output);
    p.logsumexp = view(logsumexp);
    p.logsumexp_residual = view(logsumexp_residual);
    return p;
  }
  BackwardProblem backward_problem() const {
    BackwardProblem p;
    fill(p);
    p.output = view(output);
    p.logsumexp = view(logsumexp);
    p.logsumexp_residual = view(logsumexp_residual);
    p.grad_output = view(grad_output);
    p.grad_logsumexp = view(grad_logsumexp);
    p.grad_query = view(grad_query);
    p.grad_key = view(grad_key);
    p.grad_value = view(grad_value);
    p.grad_bias = view(grad_bias);
    return p;
  }

  // Runs a pass on results full of NaN and returns copies of them.
  std::vector<Tensor> run(void (*forward)(const ForwardProblem&)) {
    output = Tensor(output.dtype(), output.sizes(), options.layout);
    logsumexp = Tensor(logsumexp.dtype(), logsumexp.sizes(), options.layout);
    logsumexp_residual = Tensor(logsumexp.dtype(), logsumexp.sizes(), options.layout);
    forward(forward_problem());
    return {output, logsumexp, logsumexp_residual};
  }
  std::vector<Tensor> run(void (*backward)(const BackwardProblem&)) {
    for (Tensor* t : {&grad_query, &grad_key, &grad_value})
      if (*t) *t = Tensor(t->dtype(), t->sizes(), options.layout);
    if (grad_bias) {
      grad_bias = Tensor(grad_bias.dtype(), grad_bias.sizes());
      grad_bias.fill_zero();
    }
    backward(backward_problem());
    return {grad_query, grad_key, grad_value, grad_bias};
  }

 private:
  std::vector<int64_t> broadcast(const std::string& letters) const {
    const auto has = [&](char letter) { return letters.find(letter) != std::string::npos; };
    return {has('B') ? shape.batch : 1, has('H') ? shape.heads : 1, has('N') ? shape.n : 1,
            has('M') ? shape.m : 1};
  }
  Operand view(const Tensor& t) const { return t.operand(options.split_batch); }
  void fill(Problem& p) const {
    const std::vector<int64_t> leading = options.split_batch
                                             ? std::vector<int64_t>{shape.batch / 2, 2, shape.heads}
                                             : std::vector<int64_t>{shape.batch, shape.heads};
    p.leading_dims = static_cast<int>(leading.size());
    std::copy(leading.begin(), leading.end(), p.leading_sizes);
    p.group = shape.key_heads > 0 ? shape.heads / shape.key_heads : 1;
    p.query_length = shape.n;
    p.key_length = shape.m;
    p.head_size = shape.d;
    p.value_head_size = shape.e;
    p.scale = options.scale;
    p.is_causal = options.is_causal;
    p.mask = view(mask);
    p.bias = view(bias);
    p.query = view(query);
    p.key = view(key);
    p.value = view(value);
  }
};

}  // namespace torch_ext::test
