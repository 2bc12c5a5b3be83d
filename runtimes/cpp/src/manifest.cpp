#include "manifest.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "error.hpp"
#include "plan.hpp"

namespace skrr {
namespace {

constexpr char kFormat[] = "skrr-bundle/1";
constexpr const char* kDtypes[] = {"fp32", "fp16", "bf16"};

// Whether it is a relative path in its plain spelling, without `.`, `..`, or what another system takes for them.
bool is_inside(const std::string& name) {
  if (name.find_first_of(std::string_view("\\:\0", 3)) != std::string::npos) return false;
  for (std::size_t begin = 0, end = 0; end != std::string::npos; begin = end + 1) {
    end = name.find('/', begin);
    const std::string part = name.substr(begin, end == std::string::npos ? end : end - begin);
    if (part.empty() || part == "." || part == "..") return false;
  }
  return true;
}

// Every file that a runtime opens because the manifest says so.
std::vector<std::string> named_files(const Json& document) {
  std::vector<std::string> names = {kWeightsFile};
  for (const auto& [target, entry] : as_object(member(document, "targets")).items()) {
    names.push_back(as_text(member(entry, "file")));
    if (const Json* packages = optional_member(entry, "packages")) {
      for (const Json& package : as_object(*packages)) names.push_back(as_text(package));
    }
    const Json* cpu = target == "onnx" ? optional_member(entry, "cpu") : nullptr;
    if (cpu != nullptr) names.push_back(as_text(member(*cpu, "file")));
  }
  for (const char* key : {"tokenizer", "vectors"}) {
    const Json* entry = optional_member(document, key);
    if (entry == nullptr) continue;
    names.push_back(as_text(member(*entry, "file")));
    if (const Json* data = optional_member(*entry, "data")) names.push_back(as_text(*data));
  }
  return names;
}

// A bundle may come from anywhere: it must not name files outside its directory, or files without a hash.
void check_names(const Json& document) {
  const Json& files = as_object(member(document, "files"));
  for (const auto& [name, entry] : files.items()) {
    if (!is_inside(name)) throw bad_bundle("the manifest names a file outside the bundle: " + name);
  }
  for (const std::string& name : named_files(document)) {
    if (!files.contains(name)) throw bad_bundle("the manifest gives no hash for " + name);
  }
}

FileEntry read_file_entry(const Json& document) {
  FileEntry entry{as_text(member(document, "sha256")),
                  static_cast<std::uint64_t>(as_natural(member(document, "bytes")))};
  const bool is_hash =
      entry.sha256.size() == 64 && entry.sha256.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (!is_hash) throw Malformed("'" + entry.sha256 + "' is not a hash");
  return entry;
}

// One of some texts, or null where that is one of them; gives its place among them.
std::size_t as_one_of(const Json& value, std::initializer_list<const char*> choices, const char* what) {
  std::size_t place = 0;
  for (const char* choice : choices) {
    if (choice == nullptr ? value.is_null() : value == choice) return place;
    ++place;
  }
  throw Malformed(std::string(what) + " must not be " + quoted(value));
}

std::size_t choice(const Json& document, const char* key, std::initializer_list<const char*> choices) {
  return as_one_of(member(document, key), choices, key);
}

Pipeline read_pipeline(const Json& document) {
  Pipeline pipeline;
  pipeline.name = as_text(member(document, "name"));
  for (const char* key : {"encoder", "families"}) member(document, key);  // for people, and for exports
  constexpr std::array<const char*, 3> kCleaned = {"", "caption", "text"};
  pipeline.clean = kCleaned.at(choice(document, "clean", {nullptr, "caption", "text"}));
  pipeline.lowercase = as_boolean(member(document, "lowercase"));
  pipeline.removed = as_texts(member(document, "removed"));
  pipeline.prefix = as_text(member(document, "prefix"));
  pipeline.suffix = as_text(member(document, "suffix"));
  as_boolean(member(document, "special_tokens"));  // which the tokenizer's entry has worked in, as all that follow
  choice(document, "padding_side", {nullptr, "left", "right"});
  choice(document, "pad", {nullptr, "eos"});
  pipeline.max_length = as_positive(member(document, "max_length"));
  pipeline.pads_to_max_length = choice(document, "padding", {"longest", "max_length"}) == 1;
  pipeline.multiple_of = as_positive(member(document, "multiple_of"));
  pipeline.masked = as_boolean(member(document, "masked"));
  const std::vector<std::int64_t> crop = as_naturals(member(document, "crop"));
  if (crop.size() != 2 || crop[0] > crop[1]) throw Malformed("crop must not be " + quoted(member(document, "crop")));
  pipeline.crop_begin = crop[0];
  pipeline.crop_end = crop[1];
  if (!member(document, "max_rows").is_null()) pipeline.max_rows = as_positive(member(document, "max_rows"));
  pipeline.padding_rows = static_cast<PaddingRows>(choice(document, "padding_rows", {"kept", "zeroed", "packed"}));
  pipeline.reads_padding = as_boolean(member(document, "reads_padding"));
  pipeline.extra_rows = as_natural(member(document, "extra_rows"));
  pipeline.unconditional = as_text(member(document, "unconditional"));
  choice(document, "unconditional", {"encoded", "bare", "zeros"});
  pipeline.unconditional_text = as_text(member(document, "unconditional_text"));
  if (for_negatives(pipeline).max_length < 1) throw Malformed("the pipeline leaves negative prompts no token");
  return pipeline;
}

OutputEntry read_output(const Json& document) {
  constexpr std::size_t kHiddenStates = 1;
  const std::size_t kind =
      choice(document, "kind", {"last_hidden_state", "hidden_states", "pooler_output", "text_embeds"});
  const std::size_t join = choice(document, "join", {nullptr, "concatenate", "stack"});
  const std::vector<std::int64_t> layers = as_naturals(member(document, "layers"));
  const std::size_t count = kind == kHiddenStates ? std::max(layers.size(), std::size_t{1}) : 0;
  if (layers.size() != count || (join != 0) != (count > 1)) throw Malformed("it has an output of impossible layers");

  OutputEntry entry;
  entry.name = as_text(member(document, "kind"));
  if (count == 1) entry.name += "." + std::to_string(layers[0]);
  entry.pooled = kind > kHiddenStates;
  entry.stacked = join == 2 ? static_cast<std::int64_t>(count) : 0;
  const Json& shape = as_list(member(document, "shape"));
  if (shape.size() != entry.shape(1, 1).size()) throw Malformed("the shape of the output " + entry.name);
  entry.features = as_positive(shape.back());
  const bool divides = join != 1 || entry.features % static_cast<std::int64_t>(count) == 0;
  if (member(document, "name") != entry.name || !divides || (entry.stacked > 0 && shape[1] != entry.stacked)) {
    throw Malformed("the output " + quoted(member(document, "name")) + " of the shape " + quoted(shape) + " is not " +
                    entry.name);
  }
  return entry;
}

std::vector<OutputEntry> read_outputs(const Json& document, const Json& taken) {
  std::vector<OutputEntry> outputs;
  for (const Json& output : as_list(document)) outputs.push_back(read_output(output));
  if (as_list(taken).size() != outputs.size()) throw Malformed("the pipeline takes other outputs than the graphs give");
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    for (const char* key : {"kind", "layers", "join"}) {
      if (member(taken[i], key) != document[i][key]) {
        throw Malformed("the pipeline takes other outputs than the graphs give");
      }
    }
  }
  const bool both = outputs.size() == 2 && !outputs[0].pooled && outputs[1].pooled;
  if (outputs.size() != 1 && !both) {
    throw Malformed("outputs must be one per token, or one pooled, or both in this order");
  }
  return outputs;
}

// Nothing for a kind that this release does not know: ids can still be encoded.
std::optional<TokenizerEntry> read_tokenizer(const Json& document, const Pipeline& pipeline) {
  const std::string& kind = as_text(member(document, "kind"));
  const bool has_data = kind == "openvino";
  if (!has_data && kind != "sentencepiece") return std::nullopt;
  TokenizerEntry entry{kind,
                       as_text(member(document, "file")),
                       has_data ? as_text(member(document, "data")) : "",
                       as_naturals(member(document, "prefix")),
                       as_naturals(member(document, "suffix")),
                       as_natural(member(document, "pad")),
                       choice(document, "padding_side", {"left", "right"}) == 0,
                       as_texts(member(document, "special"))};
  const std::size_t added = entry.prefix.size() + entry.suffix.size();
  if (added > static_cast<std::uint64_t>(for_negatives(pipeline).max_length)) {
    throw Malformed("the tokenizer adds " + std::to_string(added) + " tokens, more than the pipeline has");
  }
  return entry;
}

double read_limit(const Json& value) {
  const double limit = value.is_number() ? value.get<double>() : -1;
  if (!(limit >= 0 && std::isfinite(limit))) throw Malformed(quoted(value) + " is not a limit");
  return limit;
}

VectorsEntry read_vectors(const Json& document) {
  VectorsEntry entry{as_text(member(document, "file")), as_positive(member(document, "count")), {}};
  for (const char* precision : kDtypes) {
    const Json& limits = member(member(document, "limits"), precision);
    entry.limits[precision] = {read_limit(member(limits, "relative_l2")),
                               read_limit(member(limits, "cosine_distance"))};
  }
  return entry;
}

void check_rescaling(const Json& document) {
  for (const Json& power : as_object(member(document, "weights"))) as_integer(power);
}

// A size of the graphs' inputs: its own name where it is free.
std::optional<std::int64_t> read_size(const Json& size, const char* name) {
  if (size == name) return std::nullopt;
  return as_positive(size);
}

Manifest read_manifest(const Json& document) {
  const Json& encoder = member(document, "encoder");
  const Json& plan = member(document, "plan");
  check_plan(plan);
  if (member(encoder, "family") != plan["encoder"]["family"] ||
      as_positive(member(encoder, "num_layers")) != as_positive(plan["encoder"]["num_layers"])) {
    throw Malformed("the plan is for another encoder");
  }
  const Json& inputs = as_list(member(document, "inputs"));
  if (inputs.empty()) throw Malformed("it has no inputs");
  const Json& shape = as_list(member(inputs[0], "shape"));
  if (shape.size() != 2) throw Malformed("the inputs are not [batch, sequence]");

  Manifest manifest;
  manifest.family = as_text(member(encoder, "family"));
  manifest.hidden_size = as_positive(member(encoder, "hidden_size"));
  manifest.vocab_size = as_positive(member(encoder, "vocab_size"));
  if (!member(encoder, "max_length").is_null()) manifest.max_length = as_positive(encoder["max_length"]);
  manifest.pipeline = read_pipeline(member(document, "pipeline"));
  manifest.dtype = as_text(member(document, "dtype"));
  if (std::find(std::begin(kDtypes), std::end(kDtypes), manifest.dtype) == std::end(kDtypes)) {
    throw Malformed("unknown dtype '" + manifest.dtype + "'");
  }
  manifest.batch = read_size(shape[0], "batch");
  manifest.sequence = read_size(shape[1], "sequence");
  manifest.outputs = read_outputs(member(document, "outputs"), member(document["pipeline"], "outputs"));
  const Json& parameters = member(document, "parameters");
  for (const char* count : {"total", "kept"}) as_positive(member(parameters, count));
  if (const Json* unread = optional_member(parameters, "unread")) as_natural(*unread);
  if (const Json* rescaling = optional_member(document, "rescaling")) check_rescaling(*rescaling);
  as_object(member(document, "tools"));
  if (const Json* entry = optional_member(document, "tokenizer")) {
    manifest.tokenizer = read_tokenizer(*entry, manifest.pipeline);
  }
  if (const Json* entry = optional_member(document, "vectors")) manifest.vectors = read_vectors(*entry);
  for (const auto& [name, entry] : document["targets"].items()) manifest.targets[name] = entry;
  for (const auto& [name, entry] : document["files"].items()) manifest.files[name] = read_file_entry(entry);
  return manifest;
}

}  // namespace

Pipeline for_negatives(const Pipeline& pipeline) {
  Pipeline changed = pipeline;
  if (pipeline.unconditional != "bare") return changed;
  changed.prefix.clear();
  changed.suffix.clear();
  changed.max_length -= pipeline.crop_end - pipeline.crop_begin;
  changed.crop_begin = changed.crop_end = 0;
  return changed;
}

std::vector<std::int64_t> OutputEntry::shape(std::int64_t batch, std::int64_t sequence) const {
  if (pooled) return {batch, features};
  if (stacked > 0) return {batch, stacked, sequence, features};
  return {batch, sequence, features};
}

Manifest parse_manifest(std::string_view text) {
  try {
    const Json document = parse_json(text);
    const Json& format = member(document, "format");
    if (format != kFormat) {
      throw bad_bundle("the bundle's format is " + quoted(format) + "; this release reads '" + kFormat + "'");
    }
    check_names(document);
    return read_manifest(document);
  } catch (const Malformed& error) {
    throw bad_bundle(std::string("malformed manifest: ") + error.what());
  }
}

}  // namespace skrr
