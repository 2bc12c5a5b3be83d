#include "self_test.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "error.hpp"
#include "rows.hpp"
#include "safetensors.hpp"

namespace skrr {
namespace {

struct Vector {
  Ids ids;                                   // with the mask, whether or not the encoder gets it
  std::vector<std::vector<float>> expected;  // of each output
  std::vector<std::string> prompts;          // empty: random ids
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

  Vector read(std::int64_t index, const std::vector<OutputEntry>& outputs) const {
    const std::string prefix = std::to_string(index) + ".";
    const StoredTensor& ids = tensor(prefix + "input_ids", "I64", 2);
    const std::int64_t batch = ids.shape[0];
    const std::int64_t sequence = ids.shape[1];
    const StoredTensor& mask = tensor(prefix + "attention_mask", "I64", 2);
    if (batch < 1 || sequence < 1 || mask.shape != ids.shape) throw misshapen(index);
    Vector vector;
    vector.ids = {batch, sequence, values<std::int64_t>(ids), values<std::int64_t>(mask)};
    for (const OutputEntry& output : outputs) {
      const std::vector<std::int64_t> shape = output.shape(batch, sequence);
      const StoredTensor& expected = tensor(prefix + output.name, "F32", shape.size());
      if (expected.shape != shape) throw misshapen(index);
      vector.expected.push_back(values<float>(expected));
    }
    vector.prompts = prompts(static_cast<std::size_t>(index), batch);
    return vector;
  }

 private:
  Error damaged(const std::string& why) const { return bad_bundle(path_ + ": malformed test vectors: " + why); }

  Error misshapen(std::int64_t index) const {
    return damaged("the shapes of vector " + std::to_string(index) + " do not fit");
  }

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

// How far rows are from what was expected.
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
    const double cosine_distance = difference == 0 ? 0.0 : norms > 0 ? 1 - dot / norms : 1.0;
    cosine_distance_ = std::max(cosine_distance_, cosine_distance);
  }

  double relative_l2() const { return std::sqrt(difference_ / expected_); }
  double cosine_distance() const { return cosine_distance_; }

 private:
  double difference_ = 0;
  double expected_ = 0;
  double cosine_distance_ = 0;  // of the worst row
};

// Of an output, each of its stacked layers on its own: one may be a thousand times as large as another.
using Distances = std::vector<Distance>;

// Takes in those rows of an output that are read; of a pooled one all are.
void add(Distances& distances, const Tensor& actual, const std::vector<float>& expected,
         const std::vector<bool>& read) {
  const auto features = static_cast<std::size_t>(actual.shape.back());
  const auto batch = static_cast<std::size_t>(actual.shape[0]);
  const bool pooled = actual.shape.size() == 2;
  const std::size_t rows = pooled ? 1 : read.size() / batch;
  for (std::size_t plane = 0; plane < batch * distances.size(); ++plane) {
    const std::size_t prompt = plane / distances.size();
    for (std::size_t row = 0; row < rows; ++row) {
      if (!pooled && !read[prompt * rows + row]) continue;
      const std::size_t begin = (plane * rows + row) * features;
      distances[plane % distances.size()].add(&actual.values[begin], &expected[begin], features);
    }
  }
}

// What is no number is worst.
double worst(double a, double b) { return std::isnan(a) || std::isnan(b) ? std::nan("") : std::max(a, b); }

SelfTest::Distance summary(const std::string& output, const Distances& distances) {
  SelfTest::Distance result{output, 0, 0};
  for (const Distance& distance : distances) {
    result.relative_l2 = worst(result.relative_l2, distance.relative_l2());
    result.cosine_distance = worst(result.cosine_distance, distance.cosine_distance());
  }
  return result;
}

// Values that are not finite fail wherever they stand, in rows that nobody reads too.
std::ptrdiff_t count_nonfinite(const std::vector<float>& values) {
  return std::count_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
}

std::string number(double value) {
  if (!std::isfinite(value)) return "not finite";
  char text[32];
  std::snprintf(text, sizeof text, "%.2g", value);
  return text;
}

std::string in_words(const SelfTest& result, const Limits& limits) {
  const auto measured = [&](const char* name, double SelfTest::Distance::* measure, double limit) {
    const auto is_better = [&](const auto& a, const auto& b) {
      return !std::isnan(a.*measure) && !(a.*measure >= b.*measure);
    };
    const auto& distance = *std::max_element(result.distances.begin(), result.distances.end(), is_better);
    const std::string of = result.distances.size() > 1 ? " of " + distance.output : "";
    return name + of + " " + number(distance.*measure) + " (limit " + number(limit) + ")";
  };
  const char* ids = !result.ids_equal ? "not checked" : *result.ids_equal ? "equal" : "DIFFERENT";
  return "self-test: " + std::to_string(result.vectors) + " vectors, " +
         measured("relative L2", &SelfTest::Distance::relative_l2, limits.relative_l2) + ", " +
         measured("cosine distance", &SelfTest::Distance::cosine_distance, limits.cosine_distance) +
         (result.nonfinite > 0 ? ", " + std::to_string(result.nonfinite) + " values not finite" : "") + ", token ids " +
         ids + ": " + (result.passed ? "passed" : "FAILED");
}

}  // namespace

SelfTest run_self_test(const Bundle& bundle, const Info& info,
                       const std::function<Ids(const std::vector<std::string>&)>& tokenize,
                       const std::function<Output(const Ids&)>& run) {
  const Manifest& manifest = bundle.manifest();
  if (!manifest.vectors) {
    throw bad_bundle(bundle.directory() + " carries no test vectors; export again with --vectors 8");
  }
  const Vectors vectors(bundle.path(manifest.vectors->file), manifest.vectors->count);
  std::vector<Distances> distances;
  for (const OutputEntry& output : manifest.outputs) {
    distances.emplace_back(static_cast<std::size_t>(std::max<std::int64_t>(output.stacked, 1)));
  }
  SelfTest result;
  result.vectors = vectors.count();
  for (std::int64_t index = 0; index < vectors.count(); ++index) {
    Vector vector = vectors.read(index, manifest.outputs);
    if (info.tokenizes && !vector.prompts.empty()) {
      const Ids ids = tokenize(vector.prompts);
      result.ids_equal = result.ids_equal.value_or(true) && ids.input_ids == vector.ids.input_ids &&
                         ids.attention_mask == vector.ids.attention_mask;
    }
    const std::vector<bool> read = read_rows(manifest.pipeline, vector.ids);
    if (!info.masked) vector.ids.attention_mask.clear();
    const Output output = run(vector.ids);
    for (std::size_t i = 0; i < distances.size(); ++i) {
      const Tensor& actual = manifest.outputs[i].pooled ? output.pooled : output.rows;
      result.nonfinite += count_nonfinite(actual.values);
      add(distances[i], actual, vector.expected[i], read);
    }
  }
  const Limits& limits = manifest.vectors->limits.at(info.computes_in);
  bool close = true;
  for (std::size_t i = 0; i < distances.size(); ++i) {
    const SelfTest::Distance distance = summary(manifest.outputs[i].name, distances[i]);
    result.distances.push_back(distance);
    close = close && distance.relative_l2 <= limits.relative_l2 && distance.cosine_distance <= limits.cosine_distance;
  }
  result.passed = close && result.nonfinite == 0 && result.ids_equal.value_or(true);
  result.line = in_words(result, limits);
  return result;
}

}  // namespace skrr
