#include "request.h"

#include <chrono>
#include <cstring>
#include <stdexcept>

namespace eca {
namespace {

void check(TRITONSERVER_Error* error) {
  if (!error) return;
  std::string message = TRITONSERVER_ErrorMessage(error);
  TRITONSERVER_ErrorDelete(error);
  throw std::runtime_error(message);
}

}  // namespace

uint64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void logged(TRITONSERVER_Error* error) {
  if (!error) return;
  TRITONSERVER_LogMessage(TRITONSERVER_LOG_ERROR, __FILE__, __LINE__, TRITONSERVER_ErrorMessage(error));
  TRITONSERVER_ErrorDelete(error);
}

Request::Request(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request)
    : instance_(instance), request_(request), came_ns_(now_ns()) {
  TRITONBACKEND_Input* input;
  check(TRITONBACKEND_RequestInput(request, "image", &input));
  TRITONSERVER_DataType type;
  const int64_t* shape;
  uint32_t axes, pieces, outputs;
  uint64_t bytes;
  check(TRITONBACKEND_InputProperties(input, nullptr, &type, &shape, &axes, &bytes, &pieces));
  shape_.assign(shape, shape + axes);
  if (type != TRITONSERVER_TYPE_UINT8 || axes != 4 || shape_[0] < 1 || !pieces)
    throw std::runtime_error("image must be uint8 [N, H, W, 3], of one image at least");
  left_ = shape_[0];
  image_bytes_ = bytes / shape_[0];
  for (uint32_t piece = 0; piece < pieces; ++piece) {
    const void* data;
    uint64_t size;
    TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
    int64_t device = 0;
    check(TRITONBACKEND_InputBuffer(input, piece, &data, &size, &memory, &device));
    if (memory == TRITONSERVER_MEMORY_GPU) throw std::runtime_error("image must be in the host's memory");
    const auto* start = static_cast<const uint8_t*>(data);
    if (pieces > 1) gathered_.insert(gathered_.end(), start, start + size);
    images_ = pieces > 1 ? gathered_.data() : start;
  }
  check(TRITONBACKEND_RequestOutputCount(request, &outputs));
  for (uint32_t index = 0; index < outputs; ++index) {
    const char* name;
    check(TRITONBACKEND_RequestOutputName(request, index, &name));
    outputs_.emplace_back(name);
  }
}

void Request::refuse(TRITONBACKEND_Request* request, const std::string& why) {
  TRITONBACKEND_Response* response = nullptr;
  TRITONSERVER_Error* error = TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INVALID_ARG, why.c_str());
  logged(TRITONBACKEND_ResponseNew(&response, request));
  if (response) logged(TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, error));
  TRITONSERVER_ErrorDelete(error);
  logged(TRITONBACKEND_RequestRelease(request, TRITONSERVER_REQUEST_RELEASE_ALL));
}

bool Request::cancelled() const {
  bool gone = false;
  logged(TRITONBACKEND_RequestIsCancelled(request_, &gone));
  return gone;
}

void Request::take(int64_t first, int64_t count, const std::vector<Tensor>& tensors, int64_t place, uint64_t began_ns) {
  std::lock_guard guard(lock_);
  if (!error_) try {
      if (!response_) make_response(tensors);
      for (size_t i = 0; i < tensors.size(); ++i) {
        size_t each = 1;
        for (size_t axis = 1; axis < tensors[i].shape.size(); ++axis) each *= tensors[i].shape[axis];
        std::memcpy(buffers_[i] + first * each, tensors[i].data + place * each, sizeof(float) * count * each);
      }
    } catch (const std::exception& error) {
      error_ = TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, error.what());
    }
  if (!began_ns_ || began_ns < began_ns_) began_ns_ = began_ns;
  done(count);
}

void Request::fail(int64_t count, TRITONSERVER_Error_Code code, const std::string& why) {
  std::lock_guard guard(lock_);
  if (!error_) error_ = TRITONSERVER_ErrorNew(code, why.c_str());
  done(count);
}

void Request::make_response(const std::vector<Tensor>& tensors) {
  check(TRITONBACKEND_ResponseNew(&response_, request_));
  for (size_t i = 0; i < tensors.size(); ++i) {
    Shape shape = tensors[i].shape;
    shape[0] = shape_[0];
    uint64_t bytes = sizeof(float);
    for (int64_t axis : shape) bytes *= axis;
    TRITONBACKEND_Output* output;
    void* buffer;
    TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
    int64_t device = 0;
    check(TRITONBACKEND_ResponseOutput(
        response_, &output, outputs_[i].c_str(), TRITONSERVER_TYPE_FP32, shape.data(), shape.size()));
    check(TRITONBACKEND_OutputBuffer(output, &buffer, bytes, &memory, &device));
    if (memory == TRITONSERVER_MEMORY_GPU) throw std::runtime_error("outputs must be in the host's memory");
    buffers_.push_back(static_cast<float*>(buffer));
  }
}

void Request::done(int64_t count) {
  if (left_ -= count) return;
  const uint64_t ended = now_ns(), began = began_ns_ ? began_ns_ : ended;
  if (!response_) logged(TRITONBACKEND_ResponseNew(&response_, request_));
  if (response_) logged(TRITONBACKEND_ResponseSend(response_, TRITONSERVER_RESPONSE_COMPLETE_FINAL, error_));
  logged(TRITONBACKEND_ModelInstanceReportStatistics(
      instance_, request_, error_ == nullptr, came_ns_, began, ended, now_ns()));
  if (error_) TRITONSERVER_ErrorDelete(error_);
  logged(TRITONBACKEND_RequestRelease(request_, TRITONSERVER_REQUEST_RELEASE_ALL));
}

}  // namespace eca
