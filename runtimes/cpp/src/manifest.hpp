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

// What becomes of the rows of padding in what the encoder gives.
enum class PaddingRows { kept, zeroed, packed };

// How a diffusion pipeline calls its encoder, and what it takes of the result; in the order in which it acts.
struct Pipeline {
  std::string name;
  std::string clean;  // how prompts must have been cleaned before they get here: caption, text, or not at all
  bool lowercase = false;
  std::vector<std::string> removed;  // texts that are taken out of a prompt
  std::string prefix;                // texts around it
  std::string suffix;
  std::int64_t max_length = 0;
  bool pads_to_max_length = false;
  std::int64_t multiple_of = 1;  // that a batch is padded to on the left, in the end
  bool masked = false;           // whether the attention mask reaches the encoder
  std::int64_t crop_begin = 0;   // rows from here on are left out
  std::int64_t crop_end = 0;     // ... up to here
  std::optional<std::int64_t> max_rows;
  PaddingRows padding_rows = PaddingRows::kept;
  bool reads_padding = false;   // whether the denoiser reads the rows of padding
  std::int64_t extra_rows = 0;  // rows of padding that it reads all the same
  std::string unconditional;    // what negative prompts are: encoded, bare (without prefix, suffix and crop) or zeros
  std::string unconditional_text;  // ... where there is none

  // Whether the mask changes what comes out.
  bool needs_mask() const { return masked || padding_rows != PaddingRows::kept || extra_rows > 0; }
};

// What a pipeline does with negative prompts that it is given.
Pipeline for_negatives(const Pipeline& pipeline);

// What the graphs give under one name.
struct OutputEntry {
  std::string name;
  bool pooled = false;        // a row a prompt, or else a row a token
  std::int64_t stacked = 0;   // layers on an axis of their own, after the batch; 0: there is no such axis
  std::int64_t features = 0;  // size of the last axis

  std::vector<std::int64_t> shape(std::int64_t batch, std::int64_t sequence) const;
};

struct TokenizerEntry {
  std::string kind;  // sentencepiece or openvino
  std::string file;
  std::string data;  // of openvino: its vocabulary
  std::vector<std::int64_t> prefix;
  std::vector<std::int64_t> suffix;
  std::int64_t pad = 0;
  bool pads_left = false;
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
  std::vector<OutputEntry> outputs;  // one with a row a token, or one pooled, or both in this order
  std::optional<TokenizerEntry> tokenizer;
  std::optional<VectorsEntry> vectors;
  std::map<std::string, Json> targets;  // each has its `file`, and what its backend needs to know
  std::map<std::string, FileEntry> files;
};

// Reads manifest.json; throws an Error that does not name the file.
Manifest parse_manifest(std::string_view text);

}  // namespace skrr
