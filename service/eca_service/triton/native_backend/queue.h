// The images of all requests, in one queue for all threads of the engine.
#pragma once
#include <deque>
#include <mutex>
#include <thread>

#include "request.h"

namespace eca {

// None of the threads waits for another, nor for a request to be done as a whole: that saves a tenth of the time
// against one batch after the other, and more where others want the cores too. A thread takes several images,
// whosesoever they are, while that leaves some to each of the others. A lone image gets all cores, if they are free.
// A thread ends when nothing waits: Linux begins a new one on the core that has least to do, but wakes one on its
// waker's, though another idles. That is 4 to 5 % more images a second for two and four callers on two cores.
class Queue {
 public:
  explicit Queue(Engine engine, TRITONBACKEND_ModelInstance* instance);
  ~Queue();  // once nothing is left to do
  void add(std::shared_ptr<Request> request);

 private:
  struct Part {
    std::shared_ptr<Request> request;
    int64_t first, count;
  };
  using Batch = std::vector<Part>;

  void serve(size_t place);
  Batch next(int64_t most);
  void compute(Runner& runner, Batch batch, std::vector<uint8_t>& gathered);

  Engine engine_;
  TRITONBACKEND_ModelInstance* instance_;
  std::mutex lock_;
  std::deque<Part> parts_;
  int64_t waiting_ = 0;  // images in `parts_`
  int64_t busy_ = 0;     // threads that run images
  std::vector<std::thread> threads_;
  std::vector<size_t> free_;  // threads that have ended or did not begin
};

}  // namespace eca
