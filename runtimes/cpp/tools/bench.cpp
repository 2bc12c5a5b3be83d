#include "bench.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "memory.hpp"

namespace {

constexpr std::int64_t kUsualLength = 77;  // tokens of a long prompt, where the pipeline does not pad

std::int64_t first_of(std::int64_t asked, std::int64_t otherwise) { return asked > 0 ? asked : otherwise; }

skrr::Ids random_ids(const skrr::Info& info, const BenchOptions& options) {
  const std::int64_t length = info.pads_to_max_length ? info.max_length : std::min(kUsualLength, info.max_length);
  skrr::Ids ids;
  ids.batch = first_of(options.batch, info.batch.value_or(1));
  ids.sequence = first_of(options.sequence, info.sequence.value_or(length));
  std::mt19937_64 random(0);
  std::uniform_int_distribution<std::int64_t> any(0, info.vocab_size - 1);
  std::generate_n(std::back_inserter(ids.input_ids), ids.batch * ids.sequence, [&] { return any(random); });
  return ids;
}

double seconds_of_one(const skrr::Encoder& encoder, const skrr::Ids& ids) {
  const auto begin = std::chrono::steady_clock::now();
  encoder.encode(ids);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// The value below which so many of the sorted ones lie, between two neighbours.
double quantile(const std::vector<double>& sorted, double share) {
  const double place = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(place);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (place - std::floor(place)) * (sorted[above] - sorted[below]);
}

}  // namespace

BenchResult run_bench(const skrr::Encoder& encoder, double load_seconds, const BenchOptions& options) {
  const skrr::Ids ids = random_ids(encoder.info(), options);
  BenchResult result;
  result.batch = ids.batch;
  result.sequence = ids.sequence;
  result.runs = options.runs;
  result.load_seconds = load_seconds;
  result.first_seconds = seconds_of_one(encoder, ids);
  std::vector<double> seconds;
  for (int run = 0; run < options.runs; ++run) seconds.push_back(seconds_of_one(encoder, ids));
  std::sort(seconds.begin(), seconds.end());
  result.median_seconds = quantile(seconds, 0.5);
  result.p95_seconds = quantile(seconds, 0.95);
  const Memory memory = measure_memory();
  result.anonymous_bytes = memory.anonymous_bytes;
  result.file_bytes = memory.file_bytes;
  return result;
}

nlohmann::ordered_json to_json(const BenchResult& result) {
  return {{"batch", result.batch},
          {"sequence", result.sequence},
          {"runs", result.runs},
          {"load_seconds", result.load_seconds},
          {"first_seconds", result.first_seconds},
          {"median_seconds", result.median_seconds},
          {"p95_seconds", result.p95_seconds},
          {"anonymous_bytes", result.anonymous_bytes},
          {"file_bytes", result.file_bytes}};
}

std::string to_text(const BenchResult& result) {
  constexpr double kMiB = 1024.0 * 1024.0;
  char text[512];
  std::snprintf(text, sizeof text,
                "load            %.3f s\n"
                "first embedding %.4f s (%lld x %lld tokens)\n"
                "median, p95     %.4f s, %.4f s of %d runs\n"
                "memory          %.1f MiB anonymous, %.1f MiB of files",
                result.load_seconds, result.first_seconds, static_cast<long long>(result.batch),
                static_cast<long long>(result.sequence), result.median_seconds, result.p95_seconds, result.runs,
                static_cast<double>(result.anonymous_bytes) / kMiB, static_cast<double>(result.file_bytes) / kMiB);
  return text;
}
