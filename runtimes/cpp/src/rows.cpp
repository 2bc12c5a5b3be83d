#include "rows.hpp"

#include <algorithm>
#include <numeric>

namespace skrr {
namespace {

std::size_t position(std::int64_t value) { return static_cast<std::size_t>(value); }

std::ptrdiff_t tokens_of(const std::vector<std::int64_t>& order, const std::int64_t* mask) {
  return std::count_if(order.begin(), order.end(), [&](std::int64_t place) { return mask[place] != 0; });
}

// The places of one prompt's rows, whatever other prompts of the batch are like.
std::vector<std::int64_t> order_of(const Pipeline& pipeline, std::int64_t sequence, const std::int64_t* mask) {
  std::vector<std::int64_t> order(position(sequence));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  if (pipeline.padding_rows == PaddingRows::packed) {
    std::stable_partition(order.begin(), order.end(), [&](std::int64_t place) { return mask[place] != 0; });
  }
  const auto clamped = [&](std::int64_t end) { return order.begin() + std::min(end, sequence); };
  order.erase(clamped(pipeline.crop_begin), clamped(pipeline.crop_end));
  return order;
}

}  // namespace

Rows rows_of(const Pipeline& pipeline, std::int64_t batch, std::int64_t sequence,
             const std::vector<std::int64_t>& attention_mask) {
  std::vector<std::vector<std::int64_t>> orders;
  std::ptrdiff_t most_tokens = 0;
  for (std::int64_t prompt = 0; prompt < batch; ++prompt) {
    const std::int64_t* mask = &attention_mask[position(prompt * sequence)];
    orders.push_back(order_of(pipeline, sequence, mask));
    most_tokens = std::max(most_tokens, tokens_of(orders.back(), mask));
  }
  auto count = static_cast<std::int64_t>(orders.front().size());
  if (pipeline.padding_rows == PaddingRows::packed) count = most_tokens;
  count = std::min(count, pipeline.max_rows.value_or(count));

  Rows rows{batch, count, {}, {}};
  for (std::int64_t prompt = 0; prompt < batch; ++prompt) {
    const std::int64_t* mask = &attention_mask[position(prompt * sequence)];
    auto& order = orders[position(prompt)];
    order.resize(position(count));
    const std::int64_t tokens = tokens_of(order, mask);
    const std::int64_t end = tokens + std::min(pipeline.extra_rows, count - tokens);
    rows.index.insert(rows.index.end(), order.begin(), order.end());
    for (std::int64_t row = 0; row < count; ++row) {
      const bool is_read = pipeline.extra_rows > 0 ? row < end : mask[order[position(row)]] != 0;
      rows.mask.push_back(is_read ? 1 : 0);
    }
  }
  return rows;
}

void take(const Pipeline& pipeline, const Rows& rows, Tensor& output) {
  const std::size_t features = position(output.shape.back());
  const std::size_t sequence = position(output.shape[output.shape.size() - 2]);
  const std::size_t count = position(rows.count);
  const bool zeroes = pipeline.padding_rows != PaddingRows::kept;
  if (!zeroes && count == sequence) return;  // nothing is cropped, and so each row is in its place
  const std::size_t layers = output.shape.size() == 4 ? position(output.shape[1]) : 1;
  const std::size_t planes = position(rows.batch) * layers;
  std::vector<float> plane(sequence * features);
  // What becomes of a plane lies where it lay or before it, so that it overwrites none of those that follow.
  for (std::size_t number = 0; number < planes; ++number) {
    const float* source = &output.values[number * plane.size()];
    std::copy(source, source + plane.size(), plane.begin());
    float* target = output.values.data() + number * count * features;
    for (std::size_t row = number / layers * count; row < (number / layers + 1) * count; ++row, target += features) {
      const float* values = &plane[position(rows.index[row]) * features];
      if (zeroes && rows.mask[row] == 0) {
        std::fill(target, target + features, 0.0f);
      } else {
        std::copy(values, values + features, target);
      }
    }
  }
  output.shape[output.shape.size() - 2] = rows.count;
  output.values.resize(planes * count * features);
}

std::vector<bool> read_rows(const Pipeline& pipeline, const Ids& ids) {
  const Rows rows = rows_of(pipeline, ids.batch, ids.sequence, ids.attention_mask);
  std::vector<bool> read(ids.attention_mask.size());
  for (std::size_t row = 0; row < rows.index.size(); ++row) {
    const std::size_t prompt = row / position(rows.count);
    read[prompt * position(ids.sequence) + position(rows.index[row])] = pipeline.reads_padding || rows.mask[row] != 0;
  }
  return read;
}

}  // namespace skrr
