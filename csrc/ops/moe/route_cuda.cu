#include "ops/moe/route_cuda.h"

#include <cmath>

#include "cuda/verdict.h"
#include "ops/copy/cast_value.cuh"
#include "simt/simt.h"

namespace quantaria::ops {
namespace {

constexpr unsigned kAll = ~0u;

/// One number that sorts as (logit, lower index first), like that of the CPU: above, the float's bits made
/// monotonic, NaN highest.
__device__ __forceinline__ uint64_t rank_of(float logit, int64_t index) {
  constexpr uint32_t kSign = 0x80000000u;
  uint32_t order = simt::bits<uint32_t>(logit == 0 ? 0.0f : logit);  // the zeros are equal
  order = logit != logit ? 0xfffffffeu : order ^ ((order & kSign) != 0 ? ~0u : kSign);
  return uint64_t{order} << 32 | (~static_cast<uint32_t>(index));
}

constexpr int kRouteWarps = 4;

/// The highest rank among those of a warp's lanes, on all of them.
__device__ __forceinline__ uint64_t best_of_warp(uint64_t best) {
  for (int apart = 16; apart > 0; apart /= 2) {
    const uint64_t other = __shfl_xor_sync(kAll, best, apart);
    best = other > best ? other : best;
  }
  return best;
}

__device__ __forceinline__ int32_t expert_of(uint64_t rank) {
  return static_cast<int32_t>(~static_cast<uint32_t>(rank));
}

/// A warp for each token. Its choices come one after the other: the highest rank below that of the last one,
/// so that any number of experts goes without memory of its own. Groups of experts are a set of bits.
__global__ void __launch_bounds__(kRouteWarps * 32)
    route_tokens(ConstMatrix logits, RouteOptions options, int32_t* indices, float* weights) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t token = int64_t{blockIdx.x} * kRouteWarps + threadIdx.x / 32;
  if (token >= logits.rows) return;  // a whole warp
  const auto logit = [&](int64_t e) {
    return load_float(logits.dtype, logits.data, token * logits.row_stride + e * logits.col_stride);
  };
  const int64_t top_k = options.top_k;
  const int64_t group_size = logits.cols / options.groups;
  const bool limited = options.top_groups < options.groups;
  uint64_t groups = 0;
  const auto in_groups = [&](int64_t e) { return (groups >> (e / group_size) & 1) != 0; };
  for (int64_t g = 0; limited && g < options.top_groups; ++g) {
    uint64_t best = 0;
    for (int64_t e = lane; e < logits.cols; e += 32) {
      const uint64_t rank = rank_of(logit(e), e);
      if (rank > best && !in_groups(e)) best = rank;
    }
    groups |= uint64_t{1} << (expert_of(best_of_warp(best)) / group_size);
  }
  double largest = 0;
  double sum = 0;
  uint64_t last = ~uint64_t{0};  // above every rank, that of a NaN too
  for (int64_t k = 0; k < top_k; ++k) {
    uint64_t best = 0;
    for (int64_t e = lane; e < logits.cols; e += 32) {
      const uint64_t rank = rank_of(logit(e), e);
      if (rank < last && rank > best && (!limited || in_groups(e))) best = rank;
    }
    last = best_of_warp(best);
    const int32_t chosen = expert_of(last);
    const double value = logit(chosen);
    if (k == 0) largest = value;  // NaN and infinity make every weight NaN
    sum += exp(value - largest);
    if (lane == 0) simt::store(indices + token * top_k + k, chosen);
  }
  if (options.softmax_first && !options.normalize) {
    double rest = 0;
    for (int64_t e = lane; e < logits.cols; e += 32)
      if (rank_of(logit(e), e) < last || (limited && !in_groups(e))) rest += exp(logit(e) - largest);
    for (int apart = 16; apart > 0; apart /= 2) rest += __shfl_xor_sync(kAll, rest, apart);
    sum += rest;
  }
  __syncwarp();  // lane 0 has written the choices
  for (int64_t k = lane; k < top_k; k += 32) {
    const double value = logit(simt::load(indices + token * top_k + k));
    simt::store(weights + token * top_k + k, static_cast<float>(exp(value - largest) / sum * options.scale));
  }
}

// Slots are sorted in chunks of so many: counted by expert, the counts added up, and put in place. Each
// thread has experts of its own and goes through all slots of the chunk: what it finds first comes first, so
// nothing depends on the order of threads.
constexpr int kChunk = 512;
constexpr int kSortThreads = 256;

struct SortShared {
  int32_t expert[kChunk];
};

struct SlotSort {
  const int32_t* indices;
  int64_t count;
  int32_t experts;
  SlotOrder to;
  cuda::Verdict* verdict;  // or null
  int32_t* chunk;          // [chunks, experts]: slots of an expert in each, then in those before
};

__device__ __forceinline__ void load_chunk(const SlotSort& s, SortShared& shared, int64_t first) {
  for (int i = static_cast<int>(threadIdx.x); i < kChunk; i += kSortThreads) {
    const int32_t e = first + i < s.count ? simt::load(s.indices + first + i) : -1;
    shared.expert[i] = e;
    if (s.verdict && first + i < s.count && (e < 0 || e >= s.experts)) cuda::refuse(s.verdict, first + i);
  }
}

__device__ __forceinline__ int32_t count_in_chunk(const SortShared& shared, int32_t e) {
  int32_t count = 0;
  for (int i = 0; i < kChunk; ++i) count += shared.expert[i] == e ? 1 : 0;
  return count;
}

__device__ __forceinline__ void put_in_place(const SlotSort& s, const SortShared& shared, int64_t first,
                                             int32_t e, int64_t place) {
  for (int i = 0; i < kChunk; ++i)
    if (shared.expert[i] == e) simt::store(s.to.order + place++, static_cast<int32_t>(first + i));
}

/// By the first warp.
__device__ __forceinline__ void add_up_offsets(const SlotSort& s) {
  if (threadIdx.x >= 32) return;
  const int lane = static_cast<int>(threadIdx.x);
  int32_t before = 0;
  if (lane == 0) simt::store(s.to.offsets, 0);
  for (int32_t e0 = 0; e0 < s.experts; e0 += 32) {
    int32_t sum = e0 + lane < s.experts ? simt::load(s.to.counts + e0 + lane) : 0;
    for (int apart = 1; apart < 32; apart *= 2) {
      const int32_t left = __shfl_up_sync(kAll, sum, static_cast<unsigned>(apart));
      if (lane >= apart) sum += left;
    }
    if (e0 + lane < s.experts) simt::store(s.to.offsets + e0 + lane + 1, before + sum);
    before += __shfl_sync(kAll, sum, 31);
  }
}

__global__ void __launch_bounds__(kSortThreads) count_chunks(SlotSort s) {
  auto& shared = simt::shared<SortShared>();
  load_chunk(s, shared, int64_t{blockIdx.x} * kChunk);
  __syncthreads();  // the chunk is there for all
  for (int32_t e = static_cast<int32_t>(threadIdx.x); e < s.experts; e += kSortThreads)
    simt::store(s.chunk + int64_t{blockIdx.x} * s.experts + e, count_in_chunk(shared, e));
}

/// One block.
__global__ void __launch_bounds__(kSortThreads) add_up_chunks(SlotSort s, int64_t chunks) {
  for (int32_t e = static_cast<int32_t>(threadIdx.x); e < s.experts; e += kSortThreads) {
    int32_t before = 0;
    for (int64_t c = 0; c < chunks; ++c) {
      int32_t* const place = s.chunk + c * s.experts + e;
      const int32_t count = simt::load(place);
      simt::store(place, before);
      before += count;
    }
    simt::store(s.to.counts + e, before);
  }
  __syncthreads();  // all experts are counted
  add_up_offsets(s);
}

__global__ void __launch_bounds__(kSortThreads) place_chunks(SlotSort s) {
  auto& shared = simt::shared<SortShared>();
  const int64_t first = int64_t{blockIdx.x} * kChunk;
  load_chunk(s, shared, first);
  __syncthreads();  // the chunk is there for all
  for (int32_t e = static_cast<int32_t>(threadIdx.x); e < s.experts; e += kSortThreads)
    put_in_place(
        s, shared, first, e,
        int64_t{simt::load(s.to.offsets + e)} + simt::load(s.chunk + int64_t{blockIdx.x} * s.experts + e));
}

/// All of it where there is one chunk, as for few tokens, whose layer takes less time than launches do.
__global__ void __launch_bounds__(kSortThreads) sort_chunk(SlotSort s) {
  auto& shared = simt::shared<SortShared>();
  load_chunk(s, shared, 0);
  __syncthreads();  // the chunk is there for all
  for (int32_t e = static_cast<int32_t>(threadIdx.x); e < s.experts; e += kSortThreads)
    simt::store(s.to.counts + e, count_in_chunk(shared, e));
  __syncthreads();  // all experts are counted
  add_up_offsets(s);
  __syncthreads();  // the offsets are there for all
  for (int32_t e = static_cast<int32_t>(threadIdx.x); e < s.experts; e += kSortThreads)
    put_in_place(s, shared, 0, e, simt::load(s.to.offsets + e));
}

int64_t chunks_of(int64_t count) { return (count + kChunk - 1) / kChunk; }

}  // namespace

void route_cuda(void* opaque_stream, const ConstMatrix& logits, const RouteOptions& options, int32_t* indices,
                float* weights, const SlotOrder& slots, std::byte* workspace) {
  if (logits.rows > 0) {
    const int64_t blocks = (logits.rows + kRouteWarps - 1) / kRouteWarps;
    simt::launch(route_tokens, dim3(static_cast<unsigned>(blocks)), dim3(kRouteWarps * 32), 0,
                 static_cast<simt::Stream>(opaque_stream), logits, options, indices, weights);
  }
  sort_slots_cuda(opaque_stream, indices, logits.rows * options.top_k, logits.cols, slots, nullptr,
                  workspace);
}

void sort_slots_cuda(void* opaque_stream, const int32_t* indices, int64_t count, int64_t experts,
                     const SlotOrder& to, std::byte* verdict, std::byte* workspace) {
  const auto stream = static_cast<simt::Stream>(opaque_stream);
  const int64_t chunks = chunks_of(count);
  const SlotSort sort{indices,
                      count,
                      static_cast<int32_t>(experts),
                      to,
                      reinterpret_cast<cuda::Verdict*>(verdict),
                      reinterpret_cast<int32_t*>(workspace)};
  const dim3 threads(kSortThreads);
  if (chunks <= 1) {
    simt::launch(sort_chunk, dim3(1), threads, sizeof(SortShared), stream, sort);
    return;
  }
  const dim3 blocks(static_cast<unsigned>(chunks));
  simt::launch(count_chunks, blocks, threads, sizeof(SortShared), stream, sort);
  simt::launch(add_up_chunks, dim3(1), threads, 0, stream, sort, chunks);
  simt::launch(place_chunks, blocks, threads, sizeof(SortShared), stream, sort);
}

int64_t slot_sort_workspace(int64_t count, int64_t experts) {
  const int64_t chunks = chunks_of(count);
  return chunks <= 1 ? 0 : chunks * experts * 4;
}

}  // namespace quantaria::ops
