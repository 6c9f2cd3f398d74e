// A Triton backend that runs our engines on a CPU, by the name of `onnxruntime`: the same repository runs unchanged
// under NVIDIA's container, whose own backend has that name. An image goes from Triton's thread to the engine's and from
// there to the caller; the backend in Python has a process of its own for it.
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "queue.h"

namespace {

// The text that a JSON object has by this name, itself and nothing within it; empty where it has none.
std::string text_of(const std::string& json, const std::string& name) {
  int depth = 0;
  bool value = false;
  std::string key;
  for (size_t at = 0; at < json.size(); ++at) {
    const char c = json[at];
    if (c == '"') {
      const size_t start = ++at;
      while (at < json.size() && json[at] != '"') at += json[at] == '\\' ? 2 : 1;
      if (depth != 1) continue;
      std::string word = json.substr(start, at - start);
      if (!value) key = std::move(word);
      else if (key == name) return word;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if (c == '}' || c == ']') {
      --depth;
    } else if (depth == 1 && (c == ':' || c == ',')) {
      value = c == ':';
    }
  }
  return "";
}

eca::Engine open(const std::string& folder) {
  const char* set = std::getenv("ECA_TRITON_THREADS");
  const int threads = std::max(1, set ? std::atoi(set) : 1);
  const std::string path = folder + "/model.onnx";
  std::stringstream file;  // stays empty where there is none: Triton serves models without a contract too
  file << std::ifstream(folder + "/contract.json").rdbuf();
  const std::string contract = file.str();
  if (text_of(contract, "runtime") == "openvino") {
#ifdef ECA_OPENVINO
    return eca::open_openvino(path, text_of(contract, "precision"), threads);
#else
    const std::string message = path + " is fastest in OpenVINO, which is not installed: onnxruntime runs it";
    TRITONSERVER_LogMessage(TRITONSERVER_LOG_WARN, __FILE__, __LINE__, message.c_str());
#endif
  }
  return eca::open_onnxruntime(path, threads);
}

}  // namespace

#define ENTRY extern "C" __attribute__((visibility("default"))) TRITONSERVER_Error*

ENTRY TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance* instance) {
  try {
    TRITONBACKEND_Model* model;
    TRITONBACKEND_ArtifactType type;
    const char* repository;
    uint64_t version;
    if (auto* error = TRITONBACKEND_ModelInstanceModel(instance, &model)) return error;
    if (auto* error = TRITONBACKEND_ModelRepository(model, &type, &repository)) return error;
    if (auto* error = TRITONBACKEND_ModelVersion(model, &version)) return error;
    auto engine = open(std::string(repository) + "/" + std::to_string(version));
    return TRITONBACKEND_ModelInstanceSetState(instance, new eca::Queue(std::move(engine), instance));
  } catch (const std::exception& error) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, error.what());
  }
}

// Returns at once: what waits, waits in our queue, where the threads take it up together.
ENTRY TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests, const uint32_t count) {
  void* queue;
  if (auto* error = TRITONBACKEND_ModelInstanceState(instance, &queue)) return error;
  for (uint32_t index = 0; index < count; ++index) {
    try {
      static_cast<eca::Queue*>(queue)->add(std::make_shared<eca::Request>(instance, requests[index]));
    } catch (const std::exception& error) {
      eca::Request::refuse(requests[index], error.what());
    }
  }
  return nullptr;
}

ENTRY TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance* instance) {
  void* queue;
  if (auto* error = TRITONBACKEND_ModelInstanceState(instance, &queue)) return error;
  delete static_cast<eca::Queue*>(queue);
  return nullptr;
}
