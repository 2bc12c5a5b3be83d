#include "safetensors.hpp"

#include <algorithm>
#include <optional>
#include <system_error>
#include <tuple>
#include <utility>

#include "error.hpp"
#include "json.hpp"
#include "text.hpp"

namespace skrr {
namespace {

constexpr std::size_t kPrefixBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr std::size_t kMaxRank = 64;

std::uint64_t item_bytes(const std::string& code) {
  static const std::map<std::string, std::uint64_t> kBytes = {
      {"BOOL", 1},        {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1}, {"F8_E4M3FNUZ", 1},
      {"F8_E5M2FNUZ", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},     {"BF16", 2},    {"U32", 4},     {"I32", 4},
      {"F32", 4},         {"U64", 8}, {"I64", 8}, {"F64", 8},     {"C64", 8}};
  const auto found = kBytes.find(code);
  return found == kBytes.end() ? 0 : found->second;
}

std::uint64_t little_endian(std::string_view bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = bytes.size(); i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

std::string_view header_text(const std::string& path, std::string_view file) {
  const std::uint64_t length = little_endian(file.substr(0, kPrefixBytes));
  const bool whole = file.size() >= kPrefixBytes;
  if (!whole || length > file.size() - kPrefixBytes) {
    throw bad_bundle(path + " is truncated or not a safetensors file: it is " + std::to_string(file.size()) +
                     " bytes long, and its header claims " + (whole ? std::to_string(length) : "at least 8") +
                     " bytes");
  }
  if (length > kMaxHeaderBytes) {
    throw bad_bundle(path + ": a header of " + std::to_string(length) + " bytes exceeds the limit of " +
                     std::to_string(kMaxHeaderBytes));
  }
  return file.substr(kPrefixBytes, length);
}

std::optional<std::vector<std::int64_t>> naturals(const Json& value) {
  if (!value.is_array() || value.size() > kMaxRank) return std::nullopt;
  try {
    return as_naturals(value);
  } catch (const Malformed&) {
    return std::nullopt;
  }
}

// Bytes of a tensor; nothing where they pass 2^64.
std::optional<std::uint64_t> bytes_of(const std::vector<std::int64_t>& shape, std::uint64_t item) {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  std::uint64_t bytes = item;
  for (const std::int64_t size : shape) {
    if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(size), &bytes)) return std::nullopt;
  }
  return bytes;
}

StoredTensor read_tensor(const std::string& path, const std::string& name, const Json& entry, std::uint64_t data) {
  const std::string damaged = path + ": damaged header: tensor '" + name + "'";
  if (!entry.is_object() || !entry.contains("dtype") || !entry.contains("shape") || !entry.contains("data_offsets")) {
    throw bad_bundle(damaged + " needs dtype, shape and data_offsets");
  }
  const Json& code = entry["dtype"];
  const std::uint64_t item = code.is_string() ? item_bytes(code.get<std::string>()) : 0;
  if (item == 0) throw bad_bundle(path + ": tensor '" + name + "' has the unknown dtype " + quoted(code));
  const auto shape = naturals(entry["shape"]);
  const auto offsets = naturals(entry["data_offsets"]);
  if (!shape || !offsets || offsets->size() != 2) throw bad_bundle(damaged + " has a malformed shape or data_offsets");
  const std::int64_t begin = offsets->front();
  const std::int64_t span = offsets->back() - begin;  // of two naturals, so that it cannot overflow
  const std::optional<std::uint64_t> bytes = bytes_of(*shape, item);
  if (!bytes || span < 0 || static_cast<std::uint64_t>(span) != *bytes) {
    throw bad_bundle(path + ": tensor '" + name + "' of " + code.get<std::string>() + " " + list_of(*shape) +
                     " needs " + (bytes ? std::to_string(*bytes) : "more than 2^64") + " bytes, but its offsets " +
                     list_of(*offsets) + " span " + std::to_string(span));
  }
  return {code.get<std::string>(), *shape, data + static_cast<std::uint64_t>(begin), *bytes};
}

// The format wants the tensors to tile the data section: no overlap, no hole, nothing before or after.
void check_coverage(const std::string& path, const std::map<std::string, StoredTensor>& tensors, std::uint64_t data,
                    std::uint64_t size) {
  std::vector<std::tuple<std::uint64_t, std::uint64_t, std::string>> places;  // offset, bytes, name
  for (const auto& [name, tensor] : tensors) places.emplace_back(tensor.offset, tensor.bytes, name);
  std::sort(places.begin(), places.end());
  std::uint64_t end = data;
  for (const auto& [offset, bytes, name] : places) {
    if (offset + bytes > size) {
      throw bad_bundle(path + " is truncated: tensor '" + name + "' ends at byte " + std::to_string(offset + bytes) +
                       ", the file at " + std::to_string(size));
    }
    if (offset != end) {
      throw bad_bundle(path + ": damaged header: tensor '" + name + "' " +
                       (offset < end ? "overlaps the tensor before it" : "leaves a hole before it"));
    }
    end = offset + bytes;
  }
  if (end != size) throw bad_bundle(path + ": " + std::to_string(size - end) + " bytes at the end belong to no tensor");
}

MappedFile map(const std::string& path) {
  try {
    return MappedFile(path);
  } catch (const std::system_error& error) {
    throw bad_bundle("cannot read " + path + ": " + error.code().message());
  }
}

}  // namespace

SafetensorsHeader parse_safetensors(const std::string& path, std::string_view file) {
  const std::string_view text = header_text(path, file);
  const std::uint64_t data = kPrefixBytes + text.size();
  Json document;
  try {
    document = parse_json(text);
  } catch (const Malformed& error) {
    throw bad_bundle(path + ": damaged header: " + error.what());
  }
  if (!document.is_object()) throw bad_bundle(path + ": damaged header: not a JSON object");
  SafetensorsHeader header;
  for (const auto& [name, entry] : document.items()) {
    if (name != "__metadata__") {
      header.tensors.emplace(name, read_tensor(path, name, entry, data));
    } else if (entry.is_object()) {
      for (const auto& [key, value] : entry.items()) {
        if (value.is_string()) header.metadata.emplace(key, value.get<std::string>());
      }
    }
  }
  check_coverage(path, header.tensors, data, file.size());
  return header;
}

Safetensors::Safetensors(const std::string& path) : file_(map(path)), header_(parse_safetensors(path, file_.bytes())) {}

}  // namespace skrr
