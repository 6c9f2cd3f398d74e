// A request of Triton's while it is answered: its images, and what has become of them so far.
#pragma once
#include <mutex>

#include "engine.h"
#include "triton.h"

namespace eca {

uint64_t now_ns();

// Reports an error of Triton's API to its log. There is nobody else to tell.
void logged(TRITONSERVER_Error* error);

class Request {
 public:
  // Throws std::runtime_error where it has no images that we can read; the request is still the caller's then.
  Request(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request);

  // Answers a request that could not be taken in.
  static void refuse(TRITONBACKEND_Request* request, const std::string& why);

  const Names& outputs() const { return outputs_; }
  const Shape& shape() const { return shape_; }  // [N, H, W, 3]
  const uint8_t* image(int64_t index) const { return images_ + index * image_bytes_; }
  size_t image_bytes() const { return image_bytes_; }
  bool cancelled() const;  // nobody awaits it any more

  // Takes the answers for `count` images from `first` on, which are in `tensors` from `place` on. With the last of all
  // images the request is answered; then its images are there no more.
  void take(int64_t first, int64_t count, const std::vector<Tensor>& tensors, int64_t place, uint64_t began_ns);
  void fail(int64_t count, TRITONSERVER_Error_Code code, const std::string& why);

 private:
  void make_response(const std::vector<Tensor>& tensors);
  void done(int64_t count);

  TRITONBACKEND_ModelInstance* instance_;
  TRITONBACKEND_Request* request_;
  Names outputs_;
  Shape shape_;
  const uint8_t* images_;
  size_t image_bytes_;
  std::vector<uint8_t> gathered_;  // the images, where Triton has them in pieces
  uint64_t came_ns_, began_ns_ = 0;

  std::mutex lock_;
  TRITONBACKEND_Response* response_ = nullptr;
  std::vector<float*> buffers_;
  int64_t left_;
  TRITONSERVER_Error* error_ = nullptr;
};

}  // namespace eca
