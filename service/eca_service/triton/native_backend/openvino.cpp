// Engines in OpenVINO, where its headers were there when we were built.
#include "engine.h"

#ifdef ECA_OPENVINO
#include <algorithm>
#include <openvino/openvino.hpp>

namespace eca {
namespace {

// Models for one image, for two and so on, as infer requests of one caller; of more images one part after the other.
class Requests {
 public:
  explicit Requests(const std::vector<ov::CompiledModel>& models) {
    for (ov::CompiledModel model : models) requests_.push_back(model.create_infer_request());
  }

  std::vector<Tensor> run(const Names& names, const uint8_t* images, const Shape& shape) {
    const size_t count = shape[0], most = requests_.size();
    size_t bytes = 1;
    for (size_t axis = 1; axis < shape.size(); ++axis) bytes *= shape[axis];
    std::vector<Tensor> tensors(names.size());
    outputs_.resize(names.size());
    for (size_t first = 0; first < count; first += most) {
      const size_t part = std::min(most, count - first);
      ov::InferRequest& request = requests_[part - 1];
      ov::Shape part_shape(shape.begin(), shape.end());
      part_shape[0] = part;
      auto* data = const_cast<uint8_t*>(images + first * bytes);
      request.set_input_tensor(ov::Tensor(ov::element::u8, part_shape, data));
      request.infer();
      for (size_t i = 0; i < names.size(); ++i) {
        const ov::Tensor output = request.get_tensor(names[i]);
        const auto& values = output.get_shape();
        tensors[i].shape.assign(values.begin(), values.end());
        tensors[i].shape[0] = count;
        if (part == count) {
          tensors[i].data = output.data<float>();
          continue;
        }
        const size_t each = output.get_size() / part;
        outputs_[i].resize(count * each);
        std::copy_n(output.data<float>(), part * each, outputs_[i].begin() + first * each);
        tensors[i].data = outputs_[i].data();
      }
    }
    return tensors;
  }

 private:
  std::vector<ov::InferRequest> requests_;
  std::vector<std::vector<float>> outputs_;
};

class OpenVino : public Runner {
 public:
  OpenVino(const std::vector<ov::CompiledModel>& usual, const std::vector<ov::CompiledModel>& whole, std::string first)
      : usual_(usual), whole_(whole), first_(std::move(first)) {}

  std::vector<Tensor> run(const Names& names, const uint8_t* images, const Shape& shape) override {
    return (names.size() == 1 && names[0] == first_ ? usual_ : whole_).run(names, images, shape);
  }

 private:
  Requests usual_, whole_;
  std::string first_;
};

const std::string USUAL = "probabilities";

}  // namespace

Engine open_openvino(const std::string& path, const std::string& precision, int threads) {
  static ov::Core& core = *new ov::Core;  // never destroyed: at the process's end its threads may be in it
  // For so many images at once: where the compiler does not know how many, it is a fifth slower. What only other
  // outputs than the usual one need is not computed.
  auto compiled = [&](int streams, int images, bool every) {
    auto model = core.read_model(path);
    for (const auto& result : ov::ResultVector(model->get_results()))
      if (!every && !result->output(0).get_tensor().get_names().count(USUAL) &&
          !result->input_value(0).get_names().count(USUAL))
        model->remove_result(result);
    auto shape = model->input().get_partial_shape();
    shape[0] = images;
    model->reshape(shape);
    return core.compile_model(
        model, "CPU",
        {ov::inference_num_threads(threads), ov::num_streams(streams),
         ov::hint::inference_precision(precision == "bf16" ? ov::element::bf16 : ov::element::f32),
         ov::hint::enable_cpu_pinning(false)});
  };
  const std::vector<ov::CompiledModel> lone{compiled(1, 1, true)};
  const std::vector<ov::CompiledModel> streams{compiled(threads, 1, false), compiled(threads, 2, false)};
  Engine engine{std::make_unique<OpenVino>(lone, lone, USUAL), {}, static_cast<int64_t>(streams.size())};
  for (int i = 0; i < threads; ++i) engine.alone.push_back(std::make_unique<OpenVino>(streams, lone, USUAL));
  return engine;
}

}  // namespace eca

#endif
