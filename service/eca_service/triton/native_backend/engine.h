// An engine of some runtime, opened for several threads.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace eca {

using Shape = std::vector<int64_t>;
using Names = std::vector<std::string>;

// An output, float32, whose first axis is the images. `data` is good until its runner runs again.
struct Tensor {
  Shape shape;
  const float* data;
};

// A way to run an engine, for one caller at a time.
class Runner {
 public:
  virtual ~Runner() = default;

  // The outputs `names` of images uint8 of `shape`, [N, H, W, 3]. Throws what the runtime throws, a std::exception.
  virtual std::vector<Tensor> run(const Names& names, const uint8_t* images, const Shape& shape) = 0;
};

struct Engine {
  std::unique_ptr<Runner> together;            // on all cores
  std::vector<std::unique_ptr<Runner>> alone;  // on the calling thread, one for each
  int64_t at_once;                             // images that a thread takes at once: more leave the caches
};

// A model.onnx for so many threads. The library is where ECA_ONNXRUNTIME says.
Engine open_onnxruntime(const std::string& path, int threads);

#ifdef ECA_OPENVINO
// The same, computed in `precision` if that is bf16 and else in float32.
Engine open_openvino(const std::string& path, const std::string& precision, int threads);
#endif

}  // namespace eca
