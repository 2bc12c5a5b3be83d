// What a bundle says of itself; everything is decided from this, never from a file name.

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "json.hpp"

namespace skrr {

inline constexpr char kManifestFile[] = "manifest.json";
inline constexpr char kWeightsFile[] = "weights.safetensors";
inline constexpr char kTokenizerFolder[] = "tokenizer";

struct FileEntry {
  std::string sha256;
  std::uint64_t bytes = 0;
};

// How a diffusion pipeline calls its encoder.
struct Pipeline {
  std::string name;
  std::int64_t max_length = 0;
  bool pads_to_max_length = false;
  bool masked = false;         // whether the attention mask reaches the encoder
  bool reads_padding = false;  // whether the denoiser reads the rows of padding
  bool lowercase = false;
};

struct TokenizerEntry {
  std::string kind;  // sentencepiece or openvino
  std::string file;
  std::string data;  // of openvino: its vocabulary
  std::vector<std::int64_t> prefix;
  std::vector<std::int64_t> suffix;
  std::int64_t pad = 0;
  std::vector<std::string> special;
};

struct Limits {
  double relative_l2 = 0;
  double cosine_distance = 0;
};

struct VectorsEntry {
  std::string file;
  std::int64_t count = 0;
  std::map<std::string, Limits> limits;  // by the precision that a runtime computes in
};

struct Manifest {
  std::string family;
  std::int64_t hidden_size = 0;
  std::int64_t vocab_size = 0;
  std::optional<std::int64_t> max_length;  // of the encoder, in tokens, if it has a limit
  Pipeline pipeline;
  std::string dtype;
  std::optional<std::int64_t> batch;  // if it is fixed
  std::optional<std::int64_t> sequence;
  std::optional<TokenizerEntry> tokenizer;
  std::optional<VectorsEntry> vectors;
  std::map<std::string, Json> targets;  // each has its `file`, and what its backend needs to know
  std::map<std::string, FileEntry> files;
};

// Reads manifest.json; throws an Error that does not name the file.
Manifest parse_manifest(std::string_view text);

}  // namespace skrr
