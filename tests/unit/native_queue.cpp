// Drives the compiled backend's queue without Triton, for a sanitizer to watch: callers that bring requests of many
// sizes at once, some cancelled, some at which the engine fails. Exits with 0 where each was answered once, rightly.
#include "queue.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

namespace {

constexpr int64_t SIDE = 4, BYTES = SIDE * SIDE * 3;
constexpr uint8_t FAILS = 255;

}  // namespace

// What the server would give.
struct TRITONBACKEND_Request {
  std::vector<uint8_t> images;
  int64_t shape[4];
  const char* output;
  bool cancelled;
  std::vector<float> answer;
  std::string error;
  std::atomic<int> answers{0}, releases{0};
};
struct TRITONBACKEND_Response {
  TRITONBACKEND_Request* request;
};
struct TRITONSERVER_Error {
  std::string message;
};

extern "C" {
TRITONSERVER_Error* TRITONSERVER_ErrorNew(TRITONSERVER_Error_Code, const char* text) {
  return new TRITONSERVER_Error{text};
}
void TRITONSERVER_ErrorDelete(TRITONSERVER_Error* error) { delete error; }
const char* TRITONSERVER_ErrorMessage(TRITONSERVER_Error* error) { return error->message.c_str(); }
TRITONSERVER_Error* TRITONSERVER_LogMessage(TRITONSERVER_LogLevel, const char*, int, const char* text) {
  std::fprintf(stderr, "%s\n", text);
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportStatistics(
    TRITONBACKEND_ModelInstance*, TRITONBACKEND_Request*, bool, uint64_t, uint64_t, uint64_t, uint64_t) {
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportBatchStatistics(
    TRITONBACKEND_ModelInstance*, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t) {
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestInput(
    TRITONBACKEND_Request* request, const char*, TRITONBACKEND_Input** input) {
  *input = reinterpret_cast<TRITONBACKEND_Input*>(request);
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_InputProperties(
    TRITONBACKEND_Input* input, const char**, TRITONSERVER_DataType* type, const int64_t** shape, uint32_t* axes,
    uint64_t* bytes, uint32_t* buffers) {
  auto* request = reinterpret_cast<TRITONBACKEND_Request*>(input);
  *type = TRITONSERVER_TYPE_UINT8;
  *shape = request->shape;
  *axes = 4;
  *bytes = request->images.size();
  *buffers = request->shape[0] > 1 ? 2 : 1;  // in pieces, of one image and of the others
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_InputBuffer(
    TRITONBACKEND_Input* input, uint32_t index, const void** data, uint64_t* bytes, TRITONSERVER_MemoryType*,
    int64_t*) {
  auto* request = reinterpret_cast<TRITONBACKEND_Request*>(input);
  *data = request->images.data() + index * BYTES;
  *bytes = index || request->shape[0] == 1 ? request->images.size() - index * BYTES : BYTES;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestOutputCount(TRITONBACKEND_Request*, uint32_t* count) {
  *count = 1;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestOutputName(TRITONBACKEND_Request* request, uint32_t, const char** name) {
  *name = request->output;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestIsCancelled(TRITONBACKEND_Request* request, bool* cancelled) {
  *cancelled = request->cancelled;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_RequestRelease(TRITONBACKEND_Request* request, uint32_t) {
  ++request->releases;
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ResponseNew(TRITONBACKEND_Response** response, TRITONBACKEND_Request* request) {
  *response = new TRITONBACKEND_Response{request};
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ResponseOutput(
    TRITONBACKEND_Response* response, TRITONBACKEND_Output** output, const char*, TRITONSERVER_DataType, const int64_t*,
    uint32_t) {
  *output = reinterpret_cast<TRITONBACKEND_Output*>(response->request);
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_OutputBuffer(
    TRITONBACKEND_Output* output, void** buffer, uint64_t bytes, TRITONSERVER_MemoryType*, int64_t*) {
  auto& answer = reinterpret_cast<TRITONBACKEND_Request*>(output)->answer;
  answer.resize(bytes / sizeof(float));
  *buffer = answer.data();
  return nullptr;
}
TRITONSERVER_Error* TRITONBACKEND_ResponseSend(
    TRITONBACKEND_Response* response, uint32_t, TRITONSERVER_Error* error) {
  if (error) response->request->error = error->message;
  std::fill(response->request->images.begin(), response->request->images.end(), 0);  // Triton's memory is its own again
  ++response->request->answers;
  delete response;
  return nullptr;
}
}

namespace {

// Answers twice an image's first byte, or three times where other outputs are asked for; for two images at once.
class Doubler : public eca::Runner {
 public:
  std::vector<eca::Tensor> run(const eca::Names& names, const uint8_t* images, const eca::Shape& shape) override {
    if (running_.exchange(true)) std::abort();  // a runner is one caller's at a time
    values_.clear();
    bool fails = false;
    for (int64_t image = 0; image < shape[0]; ++image) {
      const uint8_t byte = images[image * BYTES];
      fails |= byte == FAILS;
      values_.push_back((names[0] == "probabilities" ? 2.0f : 3.0f) * byte);
    }
    running_ = false;
    if (fails) throw std::runtime_error("no such image");
    return {{{shape[0], 1}, values_.data()}};
  }

 private:
  std::atomic<bool> running_{false};
  std::vector<float> values_;
};

}  // namespace

int main() {
  constexpr int CALLERS = 4, REQUESTS = 300;
  for (int threads = 1; threads <= 4; ++threads) {
    std::vector<TRITONBACKEND_Request> requests(CALLERS * REQUESTS);
    {
      eca::Engine engine{std::make_unique<Doubler>(), {}, 2};
      for (int i = 0; i < threads; ++i) engine.alone.push_back(std::make_unique<Doubler>());
      eca::Queue queue(std::move(engine), nullptr);
      std::vector<std::thread> callers;
      for (int caller = 0; caller < CALLERS; ++caller)
        callers.emplace_back([&, caller] {
          for (int i = 0; i < REQUESTS; ++i) {
            auto& request = requests[caller * REQUESTS + i];
            const int64_t count = 1 + (caller + i) % 7;
            request.images.assign(count * BYTES, 0);
            for (int64_t image = 0; image < count; ++image) request.images[image * BYTES] = (i + image) % 200;
            if (i % 50 == 7) request.images[(count - 1) * BYTES] = FAILS;
            std::copy_n(eca::Shape{count, SIDE, SIDE, 3}.data(), 4, request.shape);
            request.output = i % 3 ? "probabilities" : "features";
            request.cancelled = i % 50 == 11;
            queue.add(std::make_shared<eca::Request>(nullptr, &request));
            if (i % 20 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
          }
        });
      for (auto& caller : callers) caller.join();
    }
    for (int i = 0; i < CALLERS * REQUESTS; ++i) {
      const auto& request = requests[i];
      const int turn = i % REQUESTS;
      const int64_t count = request.shape[0];
      bool right = request.answers == 1 && request.releases == 1;
      if (turn % 50 == 7)
        right &= request.error == "the engine failed: no such image";
      else if (turn % 50 == 11)
        right &= request.error == "the caller has gone";
      else
        for (int64_t image = 0; image < count; ++image)
          right &= request.error.empty() && request.answer.size() == static_cast<size_t>(count) &&
                   request.answer[image] == (turn % 3 ? 2.0f : 3.0f) * ((turn + image) % 200);
      if (!right) {
        std::printf("%d threads: request %d of %d images was answered %d times: %s\n", threads, i,
                    static_cast<int>(count), request.answers.load(), request.error.c_str());
        return 1;
      }
    }
  }
}
