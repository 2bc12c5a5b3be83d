// Which of an encoder's rows a pipeline hands on to its denoiser, and as what.

#pragma once

#include <cstdint>
#include <vector>

#include "manifest.hpp"
#include "skrr/encoder.hpp"

namespace skrr {

// The rows that a pipeline keeps of a batch, in its order.
struct Rows {
  std::int64_t batch = 0;
  std::int64_t count = 0;
  std::vector<std::int64_t> index;  // [batch, count]: where each comes from
  std::vector<std::int64_t> mask;   // [batch, count]: 1 where the denoiser is told to read it
};

Rows rows_of(const Pipeline& pipeline, std::int64_t batch, std::int64_t sequence,
             const std::vector<std::int64_t>& attention_mask);

// Leaves of an output with a row a token those rows, in its own memory; zeros where the pipeline wants them.
void take(const Pipeline& pipeline, const Rows& rows, Tensor& output);

// [batch, sequence]: whether what the encoder gives for a token reaches the denoiser.
std::vector<bool> read_rows(const Pipeline& pipeline, const Ids& ids);

}  // namespace skrr
