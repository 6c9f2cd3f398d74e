// Batch norm in training and a clamp, forward and backward, for bf16 tensors of R rows of C channels (channels last).
// Each direction reads its input twice and writes once; PyTorch's own operators take four passes more.
#include <torch/extension.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using Half = uint16_t;
constexpr int64_t kRows = 256;  // rows summed in fp32 before they go into the fp64 sums

inline float widen(Half value) {
  uint32_t bits = uint32_t(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

inline Half narrow(float value) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return Half((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Adds up first(r, c) and second(r, c) per channel.
template <typename Add>
void column_sums(int64_t rows, int64_t channels, double* first, double* second, Add add) {
  std::vector<float> a(channels), b(channels);
  for (int64_t start = 0; start < rows; start += kRows) {
    std::fill(a.begin(), a.end(), 0.f);
    std::fill(b.begin(), b.end(), 0.f);
    for (int64_t r = start; r < std::min(rows, start + kRows); r++) add(r, a.data(), b.data());
    for (int64_t c = 0; c < channels; c++) {
      first[c] += a[c];
      second[c] += b[c];
    }
  }
}

}  // namespace

// x bf16 [R, C]; weight, bias fp32 [C] -> y, mean, variance, 1 / deviation, and the scale and shift applied.
std::vector<at::Tensor> forward_pass(at::Tensor x, at::Tensor weight, at::Tensor bias, double eps, double low, double high) {
  const int64_t channels = weight.numel(), rows = x.numel() / channels;
  const Half* __restrict__ in = static_cast<const Half*>(x.data_ptr());
  auto total = at::zeros({channels}, weight.options().dtype(at::kDouble)), squares = at::zeros_like(total);
  column_sums(rows, channels, total.data_ptr<double>(), squares.data_ptr<double>(),
              [&](int64_t r, float* __restrict__ a, float* __restrict__ b) {
                for (int64_t c = 0; c < channels; c++) {
                  const float value = widen(in[r * channels + c]);
                  a[c] += value;
                  b[c] += value * value;
                }
              });
  auto mean = total / rows, variance = (squares / rows - mean * mean).clamp_min(0), inverse = (variance + eps).rsqrt();
  auto scale = weight.to(at::kDouble) * inverse;
  auto shift = (bias.to(at::kDouble) - mean * scale).to(at::kFloat);
  scale = scale.to(at::kFloat);
  auto y = at::empty_like(x);
  Half* __restrict__ out = static_cast<Half*>(y.data_ptr());
  const float *__restrict__ s = scale.data_ptr<float>(), *__restrict__ t = shift.data_ptr<float>();
  const float lowest = low, highest = high;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < channels; c++) {
      float z = widen(in[r * channels + c]) * s[c] + t[c];
      z = z < lowest ? lowest : z;
      out[r * channels + c] = narrow(z > highest ? highest : z);
    }
  return {y, mean.to(at::kFloat), variance.to(at::kFloat), inverse.to(at::kFloat), scale, shift};
}

// gradient, x bf16 [R, C] and what forward gave -> gradients of x, weight and bias.
std::vector<at::Tensor> backward_pass(at::Tensor gradient, at::Tensor x, at::Tensor mean, at::Tensor inverse,
                                 at::Tensor scale, at::Tensor shift, double low, double high) {
  const int64_t channels = mean.numel(), rows = x.numel() / channels;
  const Half* __restrict__ in = static_cast<const Half*>(x.data_ptr());
  const Half* __restrict__ up = static_cast<const Half*>(gradient.data_ptr());
  const float *__restrict__ s = scale.data_ptr<float>(), *__restrict__ t = shift.data_ptr<float>();
  const float lowest = low, highest = high;
  auto total = at::zeros({channels}, mean.options().dtype(at::kDouble)), products = at::zeros_like(total);
  column_sums(rows, channels, total.data_ptr<double>(), products.data_ptr<double>(),
              [&](int64_t r, float* __restrict__ a, float* __restrict__ b) {
                for (int64_t c = 0; c < channels; c++) {
                  const float value = widen(in[r * channels + c]), z = value * s[c] + t[c];
                  const float g = z > lowest && z < highest ? widen(up[r * channels + c]) : 0.f;
                  a[c] += g;
                  b[c] += g * value;
                }
              });
  auto of_weight = (products - mean.to(at::kDouble) * total) * inverse;
  auto by_x = -scale.to(at::kDouble) * of_weight * inverse / rows;
  auto constant = (-scale.to(at::kDouble) * total / rows - by_x * mean).to(at::kFloat);
  by_x = by_x.to(at::kFloat);
  auto of_x = at::empty_like(x);
  Half* __restrict__ out = static_cast<Half*>(of_x.data_ptr());
  const float *__restrict__ k = by_x.data_ptr<float>(), *__restrict__ m = constant.data_ptr<float>();
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < channels; c++) {
      const float value = widen(in[r * channels + c]), z = value * s[c] + t[c];
      const float g = z > lowest && z < highest ? widen(up[r * channels + c]) : 0.f;
      out[r * channels + c] = narrow(s[c] * g + k[c] * value + m[c]);
    }
  return {of_x, of_weight.to(at::kFloat), total.to(at::kFloat)};
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("forward", &forward_pass);
  module.def("backward", &backward_pass);
}
