// Runs cluster_eca.cu's `run` on a CPU: a cluster's threads are fibers, one at a time, in an order drawn at random.
//
// A shared library: `fused_eca` launches the whole grid. It holds a fiber back at a barrier until all of its block, or
// of its cluster, are there; at one that not all reach it ends with 1, where a block reads the memory of one that has
// ended with 2. Shared memory begins as NaN, so that what is read too early shows. What this cannot show: the
// hardware's memory order, its instructions, its speed.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#define DEVICE static inline
#define UNROLL
typedef unsigned long long Address;

struct Fiber;
struct Block {
  Fiber* self;
  int thread() const;
  int image() const;
  int slab() const;
  int rank() const;
  void sync() const;
  void publish() const;
  void arrive() const;
  void wait() const;
  float of(int rank, const float* mine) const;
};
struct Vector;
static inline float number(unsigned bits) { float f; std::memcpy(&f, &bits, 4); return f; }
static inline unsigned bits_of(float f) { unsigned bits; std::memcpy(&bits, &f, 4); return bits; }
static inline unsigned half_bits(float f) { _Float16 h = (_Float16)f; uint16_t bits; std::memcpy(&bits, &h, 2); return bits; }
static inline float half_number(unsigned bits) { uint16_t b = bits; _Float16 h; std::memcpy(&h, &b, 2); return (float)h; }
static inline unsigned bfloat_bits(float f) {
  const unsigned bits = bits_of(f);
  if (f != f) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static inline void halves(unsigned word, float& low, float& high) {
  low = half_number(word & 0xffff);
  high = half_number(word >> 16);
}
static inline unsigned word_of_halves(float low, float high) { return half_bits(low) | half_bits(high) << 16; }
static inline unsigned word_of_bfloats(float low, float high) { return bfloat_bits(low) | bfloat_bits(high) << 16; }

// The maps that a launch may touch.
static std::vector<std::pair<uintptr_t, uintptr_t>> maps;

// Ends the process at what the hardware refuses too: addresses that are not whole vectors, or of no map.
static inline void aligned(const void* at, unsigned bytes) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(at);
  bool inside = false;
  for (auto [start, end] : maps) inside |= first >= start && first + bytes <= end;
  if (first % bytes || !inside) __builtin_trap();
}
template <class V, class Value> static void load(const Value* at, V& v, unsigned bytes) {
  aligned(at, bytes);
  std::memcpy(&v, at, bytes);
}
template <class Value> static Vector load16(const Value* at);
template <class Value> static void load8(const Value* at, Vector& v) { load(at, v, 8); }
template <class Value> static void store16(Value* at, const Vector& v);

#include CLUSTER_ECA

template <class Value> static Vector load16(const Value* at) {
  Vector v;
  load(at, v, 16);
  return v;
}
template <class Value> static void store16(Value* at, const Vector& v) {
  aligned(at, 16);
  std::memcpy(at, &v, 16);
}

constexpr int GRID = CLUSTER * ((CHANNELS + SLAB - 1) / SLAB);
constexpr size_t STACK = 32 << 10;

struct Group;  // a cluster that runs

struct Fiber {
  Group* group;
  int image, block, rank, index;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  int synced = 0, arrived = 0, waited = 0;  // barriers reached
  bool waits_block = false, waits_cluster = false, done = false;
};

struct Group {
  std::vector<Memory> memory{CLUSTER};
  std::vector<Fiber> fibers{size_t(CLUSTER) * THREADS};
  ucontext_t scheduler;
  bool torn = false;
  const Value *x, *weight, *residual;
  Value* out;

  // Fibers that no barrier holds back.
  std::vector<Fiber*> ready() {
    std::vector<int> synced(CLUSTER, std::numeric_limits<int>::max());
    int arrived = std::numeric_limits<int>::max();
    for (const Fiber& fiber : fibers) {
      synced[fiber.rank] = std::min(synced[fiber.rank], fiber.synced);
      arrived = std::min(arrived, fiber.arrived);
    }
    std::vector<Fiber*> found;
    for (Fiber& fiber : fibers) {
      const bool held = (fiber.waits_block && synced[fiber.rank] < fiber.synced) ||
                        (fiber.waits_cluster && arrived < fiber.waited);
      if (!fiber.done && !held) found.push_back(&fiber);
    }
    return found;
  }

  bool finished() const {
    return std::all_of(fibers.begin(), fibers.end(), [](const Fiber& fiber) { return fiber.done; });
  }
};

static void pause(Fiber* fiber) { swapcontext(&fiber->context, &fiber->group->scheduler); }

int Block::thread() const { return self->index; }
int Block::image() const { return self->image; }
int Block::slab() const { return self->block / CLUSTER; }
int Block::rank() const { return self->rank; }
void Block::sync() const {
  ++self->synced;
  self->waits_block = true;
  pause(self);
  self->waits_block = false;
}
void Block::publish() const { arrive(); }
void Block::arrive() const {
  ++self->arrived;
  pause(self);
}
void Block::wait() const {
  ++self->waited;
  self->waits_cluster = true;
  pause(self);
  self->waits_cluster = false;
}
float Block::of(int rank, const float* mine) const {
  Group& group = *self->group;
  bool gone = true;
  for (const Fiber& other : group.fibers) gone &= other.rank != rank || other.done;
  group.torn |= gone;
  const char* own = reinterpret_cast<const char*>(&group.memory[self->rank]);
  const char* there = reinterpret_cast<const char*>(&group.memory[rank]);
  float value;
  std::memcpy(&value, there + (reinterpret_cast<const char*>(mine) - own), 4);
  return value;
}

static void start(unsigned low, unsigned high) {
  Fiber* fiber = reinterpret_cast<Fiber*>(uintptr_t(low) | uintptr_t(high) << 32);
  Group& group = *fiber->group;
  run(Block{fiber}, group.memory[fiber->rank], group.x, group.weight, group.residual, group.out);
  fiber->done = true;
  pause(fiber);
}

extern "C" int fused_eca(int images, const Value* x, const Value* weight, const Value* residual, Value* out,
                         unsigned seed) {
  std::mt19937 random(seed);
  maps.clear();
  for (const Value* map : {x, residual, (const Value*)out}) {
    const uintptr_t first = reinterpret_cast<uintptr_t>(map);
    if (map) maps.push_back({first, first + uint64_t(images) * CHANNELS * PIXELS * sizeof(Value)});
  }
  for (int image = 0; image < images; ++image) {
    for (int first = 0; first < GRID; first += CLUSTER) {
      Group group;
      group.x = x, group.weight = weight, group.residual = residual, group.out = out;
      float* memory = reinterpret_cast<float*>(group.memory.data());
      for (size_t i = 0; i < CLUSTER * sizeof(Memory) / 4; ++i) memory[i] = std::numeric_limits<float>::quiet_NaN();
      for (size_t i = 0; i < group.fibers.size(); ++i) {
        Fiber& fiber = group.fibers[i];
        fiber.group = &group;
        fiber.image = image;
        fiber.rank = i / THREADS;
        fiber.block = first + fiber.rank;
        fiber.index = i % THREADS;
        fiber.stack.reset(new char[STACK]);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        const uintptr_t address = reinterpret_cast<uintptr_t>(&fiber);
        makecontext(&fiber.context, reinterpret_cast<void (*)()>(start), 2, unsigned(address), unsigned(address >> 32));
      }
      while (!group.finished()) {
        std::vector<Fiber*> ready = group.ready();
        if (ready.empty()) return 1;
        std::shuffle(ready.begin(), ready.end(), random);
        ready.resize((ready.size() + 1) / 2);  // the others fall behind
        for (Fiber* fiber : ready) swapcontext(&group.scheduler, &fiber->context);
      }
      if (group.torn) return 2;
    }
  }
  return 0;
}
