// The second kernel of FusedECA, for chips with thread-block clusters (compute capability 9.0 and later), NHWC.
//
// A cluster of CLUSTER blocks holds SLAB channels of one image in its registers, the pixels divided among the blocks.
// x is read from device memory once, whatever the map's size. The blocks add up their sums through distributed shared
// memory, in one order, so that all compute the same gate, bit by bit.
//
// Compiled with: CHANNELS, PIXELS, TAPS, RELU, RESIDUAL, TYPE (0 float, 1 half, 2 bfloat16), SLAB (channels, of whole
// vectors), CLUSTER, ROWS (pixels that a block reads at a time), MINIMUM (blocks that a multiprocessor must hold).
// Grid (CLUSTER * ceil(CHANNELS / SLAB), N), THREADS threads a block.
//
// It includes no header, so that NVRTC compiles it as it is. `run` is all that computes; what it stands on, `Block` and
// the conversions, is the hardware's here and emulated where tests compile it for a CPU.

#ifdef __CUDACC__
#define DEVICE __device__ __forceinline__
typedef unsigned long long Address;
#define UNROLL _Pragma("unroll")
#endif

#if TYPE == 0
typedef float Value;
#else
typedef unsigned short Value;  // its bits
#endif

constexpr int VECTOR = 16 / sizeof(Value);  // values of the widest load
constexpr int WORDS = 4;
constexpr int SIDE = 4;  // neighbours on each side: half of the largest TAPS
constexpr bool HALO = TAPS > 1 && SLAB < CHANNELS;
constexpr int COLUMNS = SLAB / VECTOR;
constexpr int SHARE = (PIXELS + CLUSTER - 1) / CLUSTER;  // pixels of a block
constexpr int TILES = (SHARE + ROWS - 1) / ROWS;         // vectors that a thread holds
// The first threads hold the slab, a vector of each tile. The others, two warps, sum the neighbours: whole warps do one
// or the other.
constexpr int HOLDERS = (ROWS * COLUMNS + 31) / 32 * 32;
constexpr int SIDE_ROWS = 32;
constexpr int THREADS = HOLDERS + (HALO ? 2 * SIDE_ROWS : 0);
constexpr int PARTS = HOLDERS / SLAB > 0 ? HOLDERS / SLAB : 1;
constexpr int SIDE_PARTS = 8;

static_assert(SLAB % VECTOR == 0 && CHANNELS % VECTOR == 0, "whole vectors");
static_assert(TAPS % 2 == 1 && TAPS / 2 <= SIDE, "odd taps, at most nine");
static_assert(SLAB <= HOLDERS, "a thread for each channel");

struct Vector {
  unsigned word[WORDS];
};

struct Memory {  // what a block's threads share
  float rows[ROWS][SLAB];
  float parts[PARTS][SLAB];
  float side_rows[SIDE_ROWS][2 * SIDE];
  float side_parts[SIDE_PARTS][2 * SIDE];
  float share[SLAB + 2 * SIDE];  // read by the whole cluster; the last are the neighbours before the slab, then behind
  float total[SLAB + 2 * SIDE];
  float gate[SLAB];
  float taps[TAPS];
};

#ifdef __CUDACC__

struct Block {
  DEVICE int thread() const { return threadIdx.x; }
  DEVICE int image() const { return blockIdx.y; }
  DEVICE int slab() const { return blockIdx.x / CLUSTER; }
  DEVICE int rank() const { return blockIdx.x % CLUSTER; }
  DEVICE void sync() const { __syncthreads(); }
  // `publish` makes what the block's threads wrote visible to the cluster, `arrive` only says that it is here.
  DEVICE void publish() const { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
  DEVICE void arrive() const { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
  DEVICE void wait() const { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
  // The value that block `rank` of the cluster holds where this one has `mine`, in shared memory.
  DEVICE float of(int rank, const float* mine) const {
    float value;
    asm volatile(
        "{\n\t.reg .u64 own;\n\t.reg .u32 there;\n\tcvta.to.shared.u64 own, %1;\n\tcvt.u32.u64 there, own;\n\t"
        "mapa.shared::cluster.u32 there, there, %2;\n\tld.shared::cluster.f32 %0, [there];\n\t}"
        : "=f"(value)
        : "l"(mine), "r"(rank)
        : "memory");
    return value;
  }
};

DEVICE Vector load16(const Value* at) {
  Vector v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
      : "l"(at));
  return v;
}

DEVICE void load8(const Value* at, Vector& v) {
  asm("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(v.word[0]), "=r"(v.word[1]) : "l"(at));
}

DEVICE void store16(Value* at, const Vector& v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]),
               "r"(v.word[3])
               : "memory");
}

DEVICE float number(unsigned bits) { return __uint_as_float(bits); }
DEVICE unsigned bits_of(float value) { return __float_as_uint(value); }

// The two halves of a word as floats, and back, rounded to the nearest even.
DEVICE void halves(unsigned word, float& low, float& high) {
  asm("{\n\t.reg .b16 a, b;\n\tmov.b32 {a, b}, %2;\n\tcvt.f32.f16 %0, a;\n\tcvt.f32.f16 %1, b;\n\t}"
      : "=f"(low), "=f"(high)
      : "r"(word));
}

DEVICE unsigned word_of_halves(float low, float high) {
  unsigned word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

DEVICE unsigned word_of_bfloats(float low, float high) {
  unsigned word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

#endif

DEVICE void unpack(const Vector& v, float* values) {
  UNROLL
  for (int i = 0; i < WORDS; ++i) {
#if TYPE == 0
    values[i] = number(v.word[i]);
#elif TYPE == 1
    halves(v.word[i], values[2 * i], values[2 * i + 1]);
#else
    values[2 * i] = number(v.word[i] << 16);
    values[2 * i + 1] = number(v.word[i] & 0xffff0000u);
#endif
  }
}

DEVICE Vector pack(const float* values) {
  Vector v;
  UNROLL
  for (int i = 0; i < WORDS; ++i) {
#if TYPE == 0
    v.word[i] = bits_of(values[i]);
#elif TYPE == 1
    v.word[i] = word_of_halves(values[2 * i], values[2 * i + 1]);
#else
    v.word[i] = word_of_bfloats(values[2 * i], values[2 * i + 1]);
#endif
  }
  return v;
}

DEVICE float to_float(const Value* at) {
#if TYPE == 0
  return *at;
#elif TYPE == 1
  float low, high;
  halves(*at, low, high);
  return low;
#else
  return number((unsigned)*at << 16);
#endif
}

// Sums of the neighbours on one side, by one of SIDE_ROWS threads.
DEVICE void sum_side(const Value* image, int first, int start, int end, int row, int side, float* sums) {
  const int channel = side ? first + SLAB : first - SIDE;
  if (channel < 0 || channel >= CHANNELS) return;
#pragma unroll 4
  for (int pixel = start + row; pixel < end; pixel += SIDE_ROWS) {
    const Value* at = image + (Address)pixel * CHANNELS + channel;
    float values[VECTOR];
    Vector v = {};
    if (VECTOR == SIDE) {
      v = load16(at);
    } else {
      load8(at, v);
    }
    unpack(v, values);
    UNROLL
    for (int i = 0; i < SIDE; ++i) sums[i] += values[i];
  }
}

DEVICE void run(const Block& block, Memory& memory, const Value* x, const Value* weight, const Value* residual,
                Value* out) {
  const int thread = block.thread();
  const bool holds = thread < ROWS * COLUMNS;
  const int column = thread % COLUMNS, row = thread / COLUMNS;
  const int side_thread = thread - HOLDERS;
  const int first = block.slab() * SLAB;
  const int start = block.rank() * SHARE;
  const int end = start + SHARE < PIXELS ? start + SHARE : PIXELS;
  const int channel = first + column * VECTOR;
  const Address image = (Address)block.image() * (Address)(CHANNELS * PIXELS);

  if (thread < TAPS) memory.taps[thread] = to_float(weight + thread);
  Vector kept[TILES];
  if (!HALO || side_thread < 0) {
    UNROLL
    for (int tile = 0; tile < TILES; ++tile) {
      const int pixel = start + row + tile * ROWS;
      kept[tile] = Vector{};
      if (holds && channel < CHANNELS && pixel < end) {
        kept[tile] = load16(x + image + (Address)pixel * CHANNELS + channel);
      }
    }
    float sums[VECTOR] = {};
    UNROLL
    for (int tile = 0; tile < TILES; ++tile) {
      float values[VECTOR];
      unpack(kept[tile], values);
      UNROLL
      for (int i = 0; i < VECTOR; ++i) sums[i] += values[i];
    }
    if (holds) {
      UNROLL
      for (int i = 0; i < VECTOR; ++i) memory.rows[row][column * VECTOR + i] = sums[i];
    }
  } else {
    float sums[SIDE] = {};
    const int side = side_thread / SIDE_ROWS, side_row = side_thread % SIDE_ROWS;
    sum_side(x + image, first, start, end, side_row, side, sums);
    UNROLL
    for (int i = 0; i < SIDE; ++i) memory.side_rows[side_row][side * SIDE + i] = sums[i];
  }
  block.sync();

  if (thread < PARTS * SLAB) {
    float sum = 0;
    for (int i = thread / SLAB; i < ROWS; i += PARTS) sum += memory.rows[i][thread % SLAB];
    memory.parts[thread / SLAB][thread % SLAB] = sum;
  } else if (HALO && side_thread >= 0) {
    const int value = side_thread % (2 * SIDE), part = side_thread / (2 * SIDE);
    float sum = 0;
    for (int i = part; i < SIDE_ROWS; i += SIDE_PARTS) sum += memory.side_rows[i][value];
    memory.side_parts[part][value] = sum;
  }
  block.sync();
  if (thread < SLAB) {
    float sum = 0;
    UNROLL
    for (int part = 0; part < PARTS; ++part) sum += memory.parts[part][thread];
    memory.share[thread] = sum;
  } else if (HALO && side_thread >= 0 && side_thread < 2 * SIDE) {
    float sum = 0;
    UNROLL
    for (int part = 0; part < SIDE_PARTS; ++part) sum += memory.side_parts[part][side_thread];
    memory.share[SLAB + side_thread] = sum;
  }

  // The slab's sums and those of its neighbours, over all blocks of the cluster.
  const int summed = thread < SLAB                                         ? thread
                     : HALO && side_thread >= 0 && side_thread < 2 * SIDE ? SLAB + side_thread
                                                                             : -1;
  if (CLUSTER > 1) {
    block.publish();
    block.wait();  // all blocks' shares are there
    if (summed >= 0) {
      float sum = 0;
      UNROLL
      for (int rank = 0; rank < CLUSTER; ++rank) sum += block.of(rank, &memory.share[summed]);
      memory.total[summed] = sum;
    }
  } else if (summed >= 0) {
    memory.total[summed] = memory.share[summed];
  }
  block.sync();
  if (CLUSTER > 1) block.arrive();  // this block has read the others' memory

  if (thread < SLAB) {
    float mixed = 0;
    UNROLL
    for (int tap = 0; tap < TAPS; ++tap) {
      const int at = thread + tap - TAPS / 2;
      if (at >= 0 && at < SLAB) {
        mixed += memory.taps[tap] * memory.total[at];
      } else if (HALO) {
        mixed += memory.taps[tap] * memory.total[SLAB + SIDE + (at < 0 ? at : at - SLAB)];
      }
    }
    memory.gate[thread] = 1 / (1 + expf(-mixed / PIXELS));
  }
  block.sync();

  if (holds && channel < CHANNELS) {
    float gate[VECTOR];
    UNROLL
    for (int i = 0; i < VECTOR; ++i) gate[i] = memory.gate[column * VECTOR + i];
    UNROLL
    for (int tile = 0; tile < TILES; ++tile) {
      const int pixel = start + row + tile * ROWS;
      if (pixel >= end) continue;
      const Address at = image + (Address)pixel * CHANNELS + channel;
      float values[VECTOR];
      unpack(kept[tile], values);
      UNROLL
      for (int i = 0; i < VECTOR; ++i) values[i] *= gate[i];
      if (RESIDUAL) {
        float added[VECTOR];
        unpack(load16(residual + at), added);
        UNROLL
        for (int i = 0; i < VECTOR; ++i) values[i] += added[i];
      }
      if (RELU) {
        UNROLL
        for (int i = 0; i < VECTOR; ++i) values[i] = values[i] < 0 ? 0 : values[i];  // keeps NaN, as PyTorch does
      }
      store16(out + at, pack(values));
    }
  }
  if (CLUSTER > 1) block.wait();  // its memory must be there until the others have read it
}

#ifdef __CUDACC__
extern "C" __global__ void
#if CLUSTER > 1
__cluster_dims__(CLUSTER, 1, 1)
#endif
__launch_bounds__(THREADS, MINIMUM)
#if RESIDUAL
fused_eca_cluster(const Value* x, const Value* weight, const Value* residual, Value* out) {
#else
fused_eca_cluster(const Value* x, const Value* weight, Value* out) {
  const Value* residual = nullptr;
#endif
  __shared__ Memory memory;
  run(Block(), memory, x, weight, residual, out);
}
#endif
