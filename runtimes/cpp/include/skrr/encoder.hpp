// Runs a bundle of skrr-export: prompts or token ids in, embeddings out.
//
//   skrr::Encoder encoder("t5.bundle");
//   skrr::Output output = encoder.encode({"a cat", "two dogs"});
//   output.rows.values;    // a row a token, of encoders that give one
//   output.pooled.values;  // a row a prompt, likewise

#ifndef SKRR_ENCODER_HPP
#define SKRR_ENCODER_HPP

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "skrr/export.h"

namespace skrr {

enum class ErrorKind {
  bad_input,           // a prompt, ids or an option that the encoder cannot take
  bad_bundle,          // missing, damaged, or not for this machine
  missing_dependency,  // this build or machine lacks what runs the target
  failed,              // anything else, such as a GPU out of memory
};

// What every function here throws, besides std::bad_alloc; what() is one line.
class SKRR_EXPORT Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message);
  Error(const Error&) = default;
  Error& operator=(const Error&) = default;
  ~Error() override;

  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

struct Options {
  // tensorrt, tensorrt-rtx, onnx or aoti. Empty: the first of these that the bundle has and that runs here.
  std::string target = {};
  // cpu or cuda. Empty: cuda for engines, which run nowhere else, and cpu for the others.
  std::string device = {};
  // For the operators of one call; 0: as many as ONNX Runtime thinks best. For the target onnx.
  int threads = 0;
  // Copy the weights into the layout that the kernels like best: faster, at the price of as much memory again as the
  // weights take. Otherwise they stay in the file's pages, which processes share. For the target onnx.
  bool prepacked = false;
  // Compare the hash of the weights too, which takes a second per GB; that of every other file is always compared.
  bool check_weights = false;
};

// A batch of token ids, row after row.
struct Ids {
  std::int64_t batch = 0;
  std::int64_t sequence = 0;
  std::vector<std::int64_t> input_ids = {};
  // 1 for tokens, 0 for padding. Empty: all ones, and the only choice where Info::masked is false.
  std::vector<std::int64_t> attention_mask = {};
};

// What is tokenised: some pipelines put no text around negative prompts.
enum class Role { prompt, negative_prompt };

struct Tensor {
  std::string name = {};                 // the bundle's for it: last_hidden_state, hidden_states.29, text_embeds, ...
  std::vector<std::int64_t> shape = {};  // empty: there is none
  std::vector<float> values = {};        // row-major
};

// What a pipeline takes of its encoder: `rows`, or `pooled`, or both, as Info::outputs says.
struct Output {
  std::int64_t batch = 0;
  std::int64_t sequence = 0;
  std::vector<std::int64_t> input_ids = {};       // [batch, sequence]
  std::vector<std::int64_t> attention_mask = {};  // [batch, sequence], whether or not the encoder gets to see it

  // A row a token: [batch, length, features], or of layers that are stacked [batch, layers, length, features]. The
  // length is the sequence's, less what the pipeline leaves out.
  Tensor rows = {};
  std::vector<std::int64_t> rows_mask = {};  // [batch, length], 1 for rows that the denoiser is told to read
  // A row a prompt: [batch, features].
  Tensor pooled = {};
};

struct OutputInfo {
  std::string name = {};
  bool pooled = false;
  std::vector<std::int64_t> shape = {};  // -1 where a size depends on the prompts
};

struct Info {
  std::string family = {};       // such as t5 or clip
  std::string pipeline = {};     // such as flux.1
  std::string dtype = {};        // of the weights: fp32, fp16 or bf16
  std::string target = {};       // that was opened
  std::string device = {};       // cpu or cuda
  std::string library = {};      // that runs it, with its version
  std::string computes_in = {};  // precision of the activations: fp32, fp16 or bf16; results are given as fp32 always
  std::vector<OutputInfo> outputs = {};
  std::int64_t hidden_size = 0;
  std::int64_t vocab_size = 0;
  std::int64_t max_length = 0;             // tokens a prompt is truncated to
  std::optional<std::int64_t> batch = {};  // if it is fixed
  std::optional<std::int64_t> sequence = {};
  bool pads_to_max_length = false;  // or to the longest prompt of the batch
  bool masked = false;              // whether the attention mask has an effect, and may be given
  bool tokenizes = false;           // or takes token ids only
  // How prompts have to be cleaned by the caller: caption, text, or not at all. See BUNDLE.md.
  std::string clean = {};
  // What the pipeline guides away from where it has no negative prompt: `encoded` or `bare`, unconditional_text as a
  // negative prompt; or `zeros`, zeros in the place of every output.
  std::string unconditional = {};
  std::string unconditional_text = {};
};

struct SelfTest {
  bool passed = false;
  std::int64_t vectors = 0;
  std::optional<bool> ids_equal = {};  // nothing where no prompt could be tokenised
  struct Distance {
    std::string output = {};
    double relative_l2 = 0;      // of all rows that the denoiser reads; of stacked layers, the worst one's
    double cosine_distance = 0;  // of the worst row
  };
  std::vector<Distance> distances = {};  // of each output
  std::int64_t nonfinite = 0;            // values that are NaN or infinite, in any row
  std::string line = {};                 // all of this in words
};

// An encoder that is loaded and ready to run. Its functions may be called from many threads at once; with ONNX Runtime
// they run side by side, the other targets take turns. One that was moved from can only be destroyed or assigned to.
class SKRR_EXPORT Encoder {
 public:
  explicit Encoder(const std::string& bundle, const Options& options = {});
  Encoder(Encoder&&) noexcept;
  Encoder& operator=(Encoder&&) noexcept;
  ~Encoder();

  const Info& info() const noexcept;

  // Prompts, UTF-8, as the bundle's pipeline feeds them to its encoder.
  Ids tokenize(const std::vector<std::string>& prompts, Role role = Role::prompt) const;
  // What the pipeline makes of them. Any number of prompts: they are run in batches of 8, or of the size that the
  // bundle fixes.
  Output encode(const std::vector<std::string>& prompts, Role role = Role::prompt) const;
  Output encode(const Ids& ids, Role role = Role::prompt) const;

  // Compares this machine's results with those of transformers that the bundle carries.
  SelfTest self_test() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Compares the size and hash of every file of a bundle; nothing is loaded, so that it needs none of the libraries.
SKRR_EXPORT void check_bundle(const std::string& bundle);

SKRR_EXPORT const char* version() noexcept;

}  // namespace skrr

#endif  // SKRR_ENCODER_HPP
