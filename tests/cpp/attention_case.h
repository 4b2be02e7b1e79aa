// One attention problem with all its tensors: random inputs, tangents and output gradients, results
// full of NaN.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
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

// How an operand is broadcast: the letters of (B, H, N, M) it has; "" = absent, "-" = one number
// for all.
struct Options {
  DType dtype = DType::Float32;
  Layout layout = Layout::kContiguous;
  std::string_view mask, bias;  // letters of BHNM
  bool is_causal = false;
  int64_t left = kUnlimited, right = kUnlimited;
  bool bottom_right = false;
  double scale = 0.25;
  double softcap = 0;
  std::string_view slopes, sink;  // letters of BH
  double dropout_p = 0;
  std::string_view seed = "B";  // letters of B
  bool split_batch = false;     // the batch as two dimensions
  bool wide = false;            // bias, slopes and sink in float32 with a 16-bit query
};

inline std::string describe(const Shape& s, const Options& o) {
  std::string text = "B H Hkv N M D E =";
  for (const int64_t n : {s.batch, s.heads, s.key_heads, s.n, s.m, s.d, s.e})
    text += " " + std::to_string(n);
  text += ", dtype " + std::to_string(int(o.dtype)) + ", layout " + std::to_string(int(o.layout));
  const auto add = [&](bool is_set, const char* name, std::string_view value) {
    if (is_set) text.append(", ").append(name).append(" ").append(value);
  };
  add(!o.mask.empty(), "mask", o.mask);
  add(!o.bias.empty(), "bias", o.bias);
  add(o.is_causal, "causal", "");
  add(o.left != kUnlimited, "left", std::to_string(o.left));
  add(o.right != kUnlimited, "right", std::to_string(o.right));
  add(o.bottom_right, "bottom right", "");
  add(o.softcap > 0, "softcap", std::to_string(o.softcap));
  add(!o.slopes.empty(), "slopes", o.slopes);
  add(!o.sink.empty(), "sink", o.sink);
  add(o.dropout_p > 0, "dropout", std::to_string(o.dropout_p));
  add(o.wide, "wide", "");
  return text;
}

// The real-valued inputs; also their tangents and their gradients.
struct Inputs {
  Tensor query, key, value, bias, slopes, sink;

  std::array<Tensor*, 6> all() { return {&query, &key, &value, &bias, &slopes, &sink}; }
};
inline const char* const kInputNames[] = {"query", "key", "value", "bias", "slopes", "sink"};

struct Case : Inputs {
  Shape shape;
  Options options;
  Tensor mask, seed;
  Inputs direction, grad;
  Tensor output, logsumexp, logsumexp_residual;
  Tensor grad_output, grad_logsumexp;
  Tensor output_tangent, logsumexp_tangent;

  Case(const Shape& s, const Options& o, uint64_t random_seed = 9) : shape(s), options(o) {
    Random random(random_seed);
    const auto normal = [&] { return random.normal(); };
    const DType statistics = statistics_dtype(o.dtype), extra = o.wide ? statistics : o.dtype;
    query = Tensor(o.dtype, {s.batch, s.heads, s.n, s.d}, o.layout).fill(normal);
    key = Tensor(o.dtype, {s.batch, s.key_heads, s.m, s.d}, o.layout).fill(normal);
    value = Tensor(o.dtype, {s.batch, s.key_heads, s.m, s.e}, o.layout).fill(normal);
    if (!o.mask.empty())
      mask = Tensor(DType::Bool, broadcast(o.mask), o.layout).fill([&] {
        return random.below(3) > 0;
      });
    if (!o.bias.empty())
      bias = Tensor(extra, broadcast(o.bias), o.layout).fill([&] {
        return random.below(8) ? random.normal() : -kInf;
      });
    if (!o.slopes.empty())
      slopes = Tensor(extra, per_head(o.slopes)).fill([&] { return random.uniform(0, 0.5); });
    if (!o.sink.empty()) sink = Tensor(extra, per_head(o.sink)).fill(normal);
    // 53 of the 64 bits, the highest among them.
    seed = Tensor(DType::Int64, per_head(o.seed)).fill([&] {
      return std::ldexp(static_cast<double>(static_cast<int64_t>(random.bits()) >> 11), 11);
    });
    // Tangents lie in memory in their own way.
    const auto tangent_layout = o.layout == Layout::kFarApart
                                    ? o.layout
                                    : static_cast<Layout>((static_cast<int>(o.layout) + 1) % 4);
    for (size_t i = 0; i < all().size(); ++i) {
      const Tensor& input = *all()[i];
      if (input)
        *direction.all()[i] = Tensor(input.dtype(), input.sizes(), tangent_layout).fill(normal);
    }
    output = Tensor(o.dtype, {s.batch, s.heads, s.n, s.e}, o.layout);
    logsumexp = Tensor(statistics, {s.batch, s.heads, s.n, 1}, o.layout);
    logsumexp_residual = like(logsumexp);
    grad_output = like(output).fill(normal);
    grad_logsumexp = like(logsumexp).fill(normal);
    output_tangent = like(output);
    logsumexp_tangent = like(logsumexp);
    grad = {like(query), like(key), like(value), sum_of(bias), sum_of(slopes), sum_of(sink)};
  }

  // Each runs an operator on results full of NaN, those of the operators before it as they are, and
  // returns the results. An absent tensor is neither computed nor returned defined.
  std::vector<Tensor> run(void (*forward)(const ForwardProblem&)) {
    for (Tensor* t : {&output, &logsumexp, &logsumexp_residual}) *t = like(*t);
    ForwardProblem p;
    fill_forward(p);
    forward(p);
    return {output, logsumexp, logsumexp_residual};
  }
  std::vector<Tensor> run(void (*backward)(const BackwardProblem&)) {
    BackwardProblem p;
    fill_backward(p);
    backward(p);
    return {grad.query, grad.key, grad.value, grad.bias, grad.slopes, grad.sink};
  }
  std::vector<Tensor> run(void (*tangent)(const TangentProblem&)) {
    TangentProblem p;
    fill_forward(p);
    fill_tangent(p);
    tangent(p);
    return {output_tangent, logsumexp_tangent};
  }
  std::vector<Tensor> run(void (*second_order)(const SecondOrderProblem&)) {
    SecondOrderProblem p;
    fill_backward(p);
    fill_tangent(p);
    second_order(p);
    return {grad.query,  grad.key,  grad.value,     grad.bias,
            grad.slopes, grad.sink, output_tangent, logsumexp_tangent};
  }

  int64_t offset() const { return options.bottom_right ? shape.m - shape.n : 0; }

 private:
  static bool has(std::string_view letters, char letter) {
    return letters.find(letter) != std::string::npos;
  }
  std::vector<int64_t> broadcast(std::string_view letters) const {
    return {has(letters, 'B') ? shape.batch : 1, has(letters, 'H') ? shape.heads : 1,
            has(letters, 'N') ? shape.n : 1, has(letters, 'M') ? shape.m : 1};
  }
  std::vector<int64_t> per_head(std::string_view letters) const {
    return {has(letters, 'B') ? shape.batch : 1, has(letters, 'H') ? shape.heads : 1, 1, 1};
  }
  Operand view(const Tensor& t) const { return t.operand(options.split_batch); }
  // New tensors full of NaN.
  Tensor like(const Tensor& t) const {
    return t ? Tensor(t.dtype(), t.sizes(), options.layout) : Tensor();
  }
  // For the gradient of an input that rows share: a sum in the accumulation type.
  Tensor sum_of(const Tensor& t) const {
    const bool is_far = options.layout == Layout::kFarApart;
    return t ? Tensor(statistics_dtype(t.dtype()), t.sizes(),
                      is_far ? Layout::kFarApart : Layout::kContiguous)
             : Tensor();
  }

  void fill_problem(Problem& p) const {
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
    p.softcap = options.softcap;
    p.left = options.left;
    p.right = options.is_causal ? std::min<int64_t>(options.right, 0) : options.right;
    p.offset = offset();
    p.mask = view(mask);
    p.bias = view(bias);
    p.slopes = view(slopes);
    p.sink = view(sink);
    p.dropout_p = options.dropout_p;
    if (options.dropout_p > 0) p.seed = view(seed);
    p.query = view(query);
    p.key = view(key);
    p.value = view(value);
  }
  template <class P>
  void fill_forward(P& p) const {
    fill_problem(p);
    p.output = view(output);
    p.logsumexp = view(logsumexp);
    p.logsumexp_residual = view(logsumexp_residual);
  }
  void fill_backward(BackwardProblem& p) {
    for (Tensor* t : {&grad.query, &grad.key, &grad.value}) *t = like(*t);
    for (Tensor* t : {&grad.bias, &grad.slopes, &grad.sink}) *t = sum_of(*t);
    fill_forward(p);
    p.grad_output = view(grad_output);
    p.grad_logsumexp = view(grad_logsumexp);
    p.grad_query = view(grad.query);
    p.grad_key = view(grad.key);
    p.grad_value = view(grad.value);
    p.grad_bias = view(grad.bias);
    p.grad_slopes = view(grad.slopes);
    p.grad_sink = view(grad.sink);
  }
  template <class P>
  void fill_tangent(P& p) {
    for (Tensor* t : {&output_tangent, &logsumexp_tangent}) *t = like(*t);
    p.direction = {view(direction.query), view(direction.key),    view(direction.value),
                   view(direction.bias),  view(direction.slopes), view(direction.sink)};
    p.output_tangent = view(output_tangent);
    p.logsumexp_tangent = view(logsumexp_tangent);
  }
};

}  // namespace torch_ext::test
