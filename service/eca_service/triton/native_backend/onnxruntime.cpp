// Engines in ONNX Runtime, through its C API. The wheel has the library but no header: the API is a table that only
// grows, and these are the places in it (onnxruntime_c_api.h, whose order its authors keep by assertions).
#include <dlfcn.h>

#include <cstdlib>
#include <mutex>
#include <stdexcept>

#include "engine.h"

namespace eca {
namespace {

constexpr uint32_t API_VERSION = 14;
enum Place {
  GetErrorMessage = 2,
  CreateEnv = 3,
  CreateSession = 7,
  Run = 9,
  CreateSessionOptions = 10,
  SetIntraOpNumThreads = 24,
  SetInterOpNumThreads = 25,
  CreateTensorWithDataAsOrtValue = 49,
  GetTensorMutableData = 51,
  GetDimensionsCount = 61,
  GetDimensions = 62,
  GetTensorTypeAndShape = 65,
  CreateCpuMemoryInfo = 69,
  ReleaseStatus = 93,
  ReleaseSession = 95,
  ReleaseValue = 96,
  ReleaseTensorTypeAndShapeInfo = 99,
  ReleaseSessionOptions = 100,
  AddSessionConfigEntry = 130,
};
constexpr int SEVERITY_ERROR = 3, ARENA_ALLOCATOR = 1, MEMORY_DEFAULT = 0, ELEMENT_UINT8 = 2;
void** api;
void* environment;
void* memory;

template <typename Function>
Function at(Place place) {
  return reinterpret_cast<Function>(api[place]);
}

template <typename... Arguments>
void call(Place place, Arguments... arguments) {
  if (void* status = at<void* (*)(Arguments...)>(place)(arguments...)) {
    std::string message = at<const char* (*)(void*)>(GetErrorMessage)(status);
    at<void (*)(void*)>(ReleaseStatus)(status);
    throw std::runtime_error(message);
  }
}

void release(Place place, void* object) {
  if (object) at<void (*)(void*)>(place)(object);
}

struct Value {
  void* value = nullptr;
  Value() = default;
  Value(Value&& other) noexcept : value(other.value) { other.value = nullptr; }
  ~Value() { release(ReleaseValue, value); }
};

void load() {
  static std::once_flag once;
  std::call_once(once, [] {
    const char* path = std::getenv("ECA_ONNXRUNTIME");
    void* library = dlopen(path ? path : "libonnxruntime.so", RTLD_NOW | RTLD_LOCAL);
    if (!library) throw std::runtime_error(dlerror());
    struct Base {
      void** (*api)(uint32_t);
      const char* (*version)();
    };
    auto base = reinterpret_cast<const Base* (*)()>(dlsym(library, "OrtGetApiBase"));
    if (!base || !(api = base()->api(API_VERSION))) throw std::runtime_error("this ONNX Runtime is too old");
    call(CreateEnv, SEVERITY_ERROR, "eca", &environment);
    call(CreateCpuMemoryInfo, ARENA_ALLOCATOR, MEMORY_DEFAULT, &memory);
  });
}

class Session {
 public:
  Session(const std::string& path, int threads) {
    void* options;
    call(CreateSessionOptions, &options);
    try {
      call(SetIntraOpNumThreads, options, threads);
      call(SetInterOpNumThreads, options, 1);
      // Between two runs spinning threads would take the cores that the gateway decodes on.
      call(AddSessionConfigEntry, options, "session.force_spinning_stop", "1");
      call(CreateSession, environment, path.c_str(), options, &session_);
    } catch (...) {
      release(ReleaseSessionOptions, options);
      throw;
    }
    release(ReleaseSessionOptions, options);
  }
  Session(const Session&) = delete;
  ~Session() { release(ReleaseSession, session_); }

  std::vector<Value> run(const Names& names, const uint8_t* images, const Shape& shape) {
    size_t bytes = 1;
    for (int64_t axis : shape) bytes *= axis;
    Value input;
    call(CreateTensorWithDataAsOrtValue, memory, const_cast<void*>(static_cast<const void*>(images)), bytes,
         shape.data(), shape.size(), ELEMENT_UINT8, &input.value);
    const char* input_name = "image";
    std::vector<const char*> output_names;
    for (const auto& name : names) output_names.push_back(name.c_str());
    std::vector<Value> outputs(names.size());
    static_assert(sizeof(Value) == sizeof(void*));
    call(Run, session_, static_cast<void*>(nullptr), &input_name, static_cast<const void*>(&input.value), size_t{1},
         output_names.data(), output_names.size(), &outputs[0].value);
    return outputs;
  }

 private:
  void* session_ = nullptr;
};

class OnnxRuntime : public Runner {
 public:
  explicit OnnxRuntime(std::shared_ptr<Session> session) : session_(std::move(session)) {}

  std::vector<Tensor> run(const Names& names, const uint8_t* images, const Shape& shape) override {
    outputs_.clear();
    outputs_ = session_->run(names, images, shape);
    std::vector<Tensor> tensors;
    for (const Value& output : outputs_) {
      void* info;
      size_t axes;
      void* data;
      call(GetTensorMutableData, output.value, &data);
      call(GetTensorTypeAndShape, output.value, &info);
      call(GetDimensionsCount, info, &axes);
      tensors.push_back({Shape(axes), static_cast<const float*>(data)});
      call(GetDimensions, info, tensors.back().shape.data(), axes);
      release(ReleaseTensorTypeAndShapeInfo, info);
    }
    return tensors;
  }

 private:
  std::shared_ptr<Session> session_;
  std::vector<Value> outputs_;
};

}  // namespace

Engine open_onnxruntime(const std::string& path, int threads) {
  load();
  auto alone = std::make_shared<Session>(path, 1);
  auto all = threads > 1 ? std::make_shared<Session>(path, threads) : alone;
  Engine engine{std::make_unique<OnnxRuntime>(all), {}, 2};
  for (int i = 0; i < threads; ++i) engine.alone.push_back(std::make_unique<OnnxRuntime>(alone));
  return engine;
}

}  // namespace eca
