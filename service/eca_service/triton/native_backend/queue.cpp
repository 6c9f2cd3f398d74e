#include "queue.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <system_error>

namespace eca {
namespace {

// Threads of this machine that run or want to, without the calling one.
int others_running() {
  int running = 1;
  if (FILE* file = std::fopen("/proc/loadavg", "r")) {
    if (std::fscanf(file, "%*f %*f %*f %d", &running) != 1) running = 1;
    std::fclose(file);
  }
  return running - 1;
}

// For half of the engine's threads, which may be fewer than the cores. Asked twice, for those that brought the images go
// at once.
bool cores_are_free(int threads) {
  const double most = std::max<int>(std::thread::hardware_concurrency(), threads) - threads / 2.0;
  if (others_running() < most) return true;
  std::this_thread::sleep_for(std::chrono::microseconds(50));
  return others_running() < most;
}

}  // namespace

Queue::Queue(Engine engine, TRITONBACKEND_ModelInstance* instance)
    : engine_(std::move(engine)), instance_(instance), threads_(engine_.alone.size()) {
  for (size_t place = threads_.size(); place--;) free_.push_back(place);
}

Queue::~Queue() {
  for (auto& thread : threads_)
    if (thread.joinable()) thread.join();
}

void Queue::add(std::shared_ptr<Request> request) {
  const int64_t images = request->shape()[0], threads = threads_.size();
  std::lock_guard guard(lock_);
  parts_.push_back({std::move(request), 0, images});
  waiting_ += images;
  while (!free_.empty() && threads - static_cast<int64_t>(free_.size()) < busy_ + waiting_) {
    const size_t place = free_.back();
    free_.pop_back();
    if (threads_[place].joinable()) threads_[place].join();  // it has ended
    try {
      threads_[place] = std::thread([this, place] { serve(place); });
    } catch (const std::system_error&) {
      free_.push_back(place);
      if (free_.size() < threads_.size()) return;  // those that run take it up
      parts_.pop_back();
      waiting_ -= images;
      throw;
    }
  }
}

void Queue::serve(size_t place) {
  pthread_setname_np(pthread_self(), "engine");
  Runner& alone = *engine_.alone[place];
  const int64_t threads = engine_.alone.size();
  std::vector<uint8_t> gathered;
  std::unique_lock guard(lock_);
  while (waiting_) {
    auto few = [&] { return !busy_ && waiting_ < threads; };
    bool together = few();
    if (together) {
      guard.unlock();
      together = cores_are_free(threads);
      guard.lock();
      if (!waiting_) break;
      together = together && few();
    }
    const int64_t share = std::clamp<int64_t>(waiting_ / (threads - busy_), 1, engine_.at_once);
    Batch batch = next(together ? waiting_ : share);
    ++busy_;
    guard.unlock();
    compute(together ? *engine_.together : alone, std::move(batch), gathered);
    guard.lock();
    --busy_;
  }
  free_.push_back(place);
}

// The first images, at most so many, that want the same.
Queue::Batch Queue::next(int64_t most) {
  Batch batch;
  while (most && !parts_.empty()) {
    Part& part = parts_.front();
    if (!batch.empty() && (part.request->outputs() != batch[0].request->outputs() ||
                           part.request->image_bytes() != batch[0].request->image_bytes()))
      break;
    const int64_t count = std::min(most, part.count);
    batch.push_back({part.request, part.first, count});
    part.first += count;
    part.count -= count;
    if (!part.count) parts_.pop_front();
    most -= count;
    waiting_ -= count;
  }
  return batch;
}

void Queue::compute(Runner& runner, Batch batch, std::vector<uint8_t>& gathered) {
  for (auto part = batch.begin(); part != batch.end();) {
    if (part->request->cancelled()) {
      part->request->fail(part->count, TRITONSERVER_ERROR_CANCELLED, "the caller has gone");
      part = batch.erase(part);
    } else {
      ++part;
    }
  }
  if (batch.empty()) return;
  const Request& first = *batch[0].request;
  Shape shape = first.shape();
  shape[0] = 0;
  for (const Part& part : batch) shape[0] += part.count;
  const uint64_t began = now_ns();
  try {
    const uint8_t* images = first.image(batch[0].first);
    if (batch.size() > 1) {
      gathered.resize(shape[0] * first.image_bytes());
      uint8_t* place = gathered.data();
      for (const Part& part : batch)
        place = std::copy_n(part.request->image(part.first), part.count * first.image_bytes(), place);
      images = gathered.data();
    }
    const std::vector<Tensor> tensors = runner.run(first.outputs(), images, shape);
    const uint64_t ended = now_ns();
    logged(TRITONBACKEND_ModelInstanceReportBatchStatistics(instance_, shape[0], began, began, ended, ended));
    int64_t place = 0;
    for (const Part& part : batch) {
      part.request->take(part.first, part.count, tensors, place, began);
      place += part.count;
    }
  } catch (const std::exception& error) {
    // Where several requests share the failure, each of them runs alone, and fails alone.
    if (batch.size() > 1)
      for (Part& part : batch) compute(runner, {std::move(part)}, gathered);
    else
      batch[0].request->fail(
          batch[0].count, TRITONSERVER_ERROR_INTERNAL, std::string("the engine failed: ") + error.what());
  }
}

}  // namespace eca
