#include "self_test.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "error.hpp"
#include "safetensors.hpp"

namespace skrr {
namespace {

struct Vector {
  Ids ids;  // with the mask, whether or not the encoder gets it
  std::vector<float> hidden;
  std::vector<std::string> prompts;  // empty: random ids
};

// The bundle's file of vectors.
class Vectors {
 public:
  Vectors(const std::string& path, std::int64_t count) : path_(path), file_(path), count_(count) {
    try {
      const auto found = file_.metadata().find("prompts");
      if (found == file_.metadata().end()) throw Malformed("it has no prompts");
      prompts_ = parse_json(found->second);
      if (as_list(prompts_).size() != static_cast<std::uint64_t>(count))
        throw Malformed("its prompts are not one each");
    } catch (const Malformed& error) {
      throw damaged(error.what());
    }
  }

  std::int64_t count() const noexcept { return count_; }

  Vector read(std::int64_t index, std::int64_t hidden_size) const {
    const std::string prefix = std::to_string(index) + ".";
    const StoredTensor& ids = tensor(prefix + "input_ids", "I64", 2);
    const StoredTensor& mask = tensor(prefix + "attention_mask", "I64", 2);
    const StoredTensor& hidden = tensor(prefix + "last_hidden_state", "F32", 3);
    const std::vector<std::int64_t> shape = {ids.shape[0], ids.shape[1], hidden_size};
    if (mask.shape != ids.shape || hidden.shape != shape)
      throw damaged("the shapes of vector " + prefix + " do not fit");
    Vector vector;
    vector.ids = {shape[0], shape[1], values<std::int64_t>(ids), values<std::int64_t>(mask)};
    vector.hidden = values<float>(hidden);
    vector.prompts = prompts(static_cast<std::size_t>(index), shape[0]);
    return vector;
  }

 private:
  Error damaged(const std::string& why) const { return bad_bundle(path_ + ": malformed test vectors: " + why); }

  const StoredTensor& tensor(const std::string& name, const char* code, std::size_t rank) const {
    const auto found = file_.tensors().find(name);
    if (found == file_.tensors().end()) throw damaged("there is no " + name);
    if (found->second.code != code || found->second.shape.size() != rank) {
      throw damaged(name + " is not " + code + " of " + std::to_string(rank) + " dimensions");
    }
    return found->second;
  }

  template <typename T>
  std::vector<T> values(const StoredTensor& tensor) const {
    std::vector<T> copied(tensor.bytes / sizeof(T));
    if (!copied.empty()) std::memcpy(copied.data(), file_.data(tensor), tensor.bytes);
    return copied;
  }

  std::vector<std::string> prompts(std::size_t index, std::int64_t batch) const {
    try {
      if (prompts_[index].is_null()) return {};
      std::vector<std::string> texts = as_texts(prompts_[index]);
      if (texts.size() != static_cast<std::uint64_t>(batch)) throw Malformed("a prompt does not have its row");
      return texts;
    } catch (const Malformed& error) {
      throw damaged(error.what());
    }
  }

  std::string path_;
  Safetensors file_;
  std::int64_t count_;
  Json prompts_;
};

// How far results are from what was expected, row by row.
class Distance {
 public:
  void add(const float* actual, const float* expected, std::size_t size) {
    double difference = 0;
    double dot = 0;
    double actual_square = 0;
    double expected_square = 0;
    for (std::size_t i = 0; i < size; ++i) {
      const double a = actual[i];
      const double e = expected[i];
      difference += (a - e) * (a - e);
      dot += a * e;
      actual_square += a * a;
      expected_square += e * e;
    }
    difference_ += difference;
    expected_ += expected_square;
    const double norms = std::sqrt(actual_square) * std::sqrt(expected_square);
    cosine_distance_ = std::max(cosine_distance_, norms > 0 ? 1 - dot / norms : 1.0);
  }

  // Values that are not finite fail wherever they stand, in rows that nobody reads too.
  void count_nonfinite(const std::vector<float>& values) {
    nonfinite_ += std::count_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
  }

  std::ptrdiff_t nonfinite() const noexcept { return nonfinite_; }
  double relative_l2() const { return std::sqrt(difference_ / expected_); }
  double cosine_distance() const { return cosine_distance_; }

 private:
  std::ptrdiff_t nonfinite_ = 0;
  double difference_ = 0;
  double expected_ = 0;
  double cosine_distance_ = 0;  // of the worst row
};

std::string number(double value) {
  if (!std::isfinite(value)) return "not finite";
  char text[32];
  std::snprintf(text, sizeof text, "%.2g", value);
  return text;
}

std::string in_words(const SelfTest& result, const Limits& limits) {
  const char* ids = !result.ids_equal ? "not checked" : *result.ids_equal ? "equal" : "DIFFERENT";
  return "self-test: " + std::to_string(result.vectors) + " vectors, relative L2 " + number(result.relative_l2) +
         " (limit " + number(limits.relative_l2) + "), cosine distance " + number(result.cosine_distance) + " (limit " +
         number(limits.cosine_distance) + ")" +
         (result.nonfinite > 0 ? ", " + std::to_string(result.nonfinite) + " values not finite" : "") + ", token ids " +
         ids + ": " + (result.passed ? "passed" : "FAILED");
}

}  // namespace

SelfTest run_self_test(const Bundle& bundle, const Encoder& encoder) {
  const Manifest& manifest = bundle.manifest();
  if (!manifest.vectors) {
    throw bad_bundle(bundle.directory() + " carries no test vectors; export again with --vectors 8");
  }
  const Vectors vectors(bundle.path(manifest.vectors->file), manifest.vectors->count);
  Distance distance;
  SelfTest result;
  result.vectors = vectors.count();
  for (std::int64_t index = 0; index < vectors.count(); ++index) {
    Vector vector = vectors.read(index, manifest.hidden_size);
    if (encoder.info().tokenizes && !vector.prompts.empty()) {
      const Ids ids = encoder.tokenize(vector.prompts);
      result.ids_equal = result.ids_equal.value_or(true) && ids.input_ids == vector.ids.input_ids &&
                         ids.attention_mask == vector.ids.attention_mask;
    }
    const std::vector<std::int64_t> mask = vector.ids.attention_mask;
    if (!manifest.pipeline.masked) vector.ids.attention_mask.clear();
    const Output output = encoder.encode(vector.ids);
    distance.count_nonfinite(output.last_hidden_state);
    const auto width = static_cast<std::size_t>(manifest.hidden_size);
    for (std::size_t row = 0; row < mask.size(); ++row) {
      if (!manifest.pipeline.reads_padding && mask[row] == 0) continue;  // which the denoiser does not read
      distance.add(&output.last_hidden_state[row * width], &vector.hidden[row * width], width);
    }
  }
  const Limits& limits = manifest.vectors->limits.at(encoder.info().computes_in);
  result.relative_l2 = distance.relative_l2();
  result.cosine_distance = distance.cosine_distance();
  result.nonfinite = distance.nonfinite();
  result.passed = result.nonfinite == 0 && result.relative_l2 <= limits.relative_l2 &&
                  result.cosine_distance <= limits.cosine_distance && result.ids_equal.value_or(true);
  result.line = in_words(result, limits);
  return result;
}

}  // namespace skrr
