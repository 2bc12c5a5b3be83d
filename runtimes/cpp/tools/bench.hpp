// How long an encoder takes, and what memory it holds.

#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "skrr/encoder.hpp"

struct BenchOptions {
  std::int64_t batch = 0;     // 0: what the bundle fixes, or 1
  std::int64_t sequence = 0;  // 0: what the pipeline pads to, or 77
  int runs = 10;
};

struct BenchResult {
  std::int64_t batch = 0;
  std::int64_t sequence = 0;
  int runs = 0;
  double load_seconds = 0;  // from opening the bundle until it is ready
  double first_seconds = 0;
  double median_seconds = 0;
  double p95_seconds = 0;
  std::int64_t anonymous_bytes = 0;
  std::int64_t file_bytes = 0;
};

BenchResult run_bench(const skrr::Encoder& encoder, double load_seconds, const BenchOptions& options);

nlohmann::ordered_json to_json(const BenchResult& result);
std::string to_text(const BenchResult& result);
