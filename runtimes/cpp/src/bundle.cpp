#include "bundle.hpp"

#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "error.hpp"
#include "files.hpp"
#include "safetensors.hpp"
#include "text.hpp"

namespace skrr {
namespace {

namespace fs = std::filesystem;

std::string without_slash(std::string directory) {
  while (directory.size() > 1 && directory.back() == '/') directory.pop_back();
  return directory.empty() ? "." : directory;
}

Manifest read_manifest(const std::string& directory) {
  const std::string unreadable = directory + " is not a bundle: cannot read " + kManifestFile + ": ";
  const std::string path = directory + "/" + kManifestFile;
  std::string text;
  try {
    text = read_file(path);
  } catch (const std::system_error& error) {
    throw bad_bundle(unreadable + error.code().message());
  }
  if (!is_utf8(text)) throw bad_bundle(unreadable + "not UTF-8 text");
  try {
    return parse_manifest(text);
  } catch (const Error& error) {
    throw bad_bundle(path + ": " + error.what());
  }
}

void check_hash(const std::string& path, const FileEntry& entry) {
  std::string hash;
  try {
    hash = sha256_of(path);
  } catch (const std::system_error& error) {
    throw bad_bundle("cannot read " + path + ": " + error.code().message());
  }
  if (hash != entry.sha256) throw bad_bundle(path + " was changed: its hash is not the manifest's; export again");
}

void check_size(const std::string& path, const FileEntry& entry) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) {
    throw bad_bundle(path + " is missing from the bundle; copy the bundle whole, or export again");
  }
  const std::uint64_t size = fs::file_size(path, error);
  if (size != entry.bytes) {
    throw bad_bundle(path + " is " + std::to_string(size) + " bytes long, the manifest says " +
                     std::to_string(entry.bytes) + "; it was truncated or changed");
  }
}

// Python's loader reads whatever it finds in the tokenizer's folder, so that all loaders refuse what is not the
// bundle's.
void check_tokenizer_folder(const std::string& directory, const Manifest& manifest) {
  std::error_code error;
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory + "/" + kTokenizerFolder, error)) {
    names.insert(std::string(kTokenizerFolder) + "/" + entry.path().filename().string());
  }
  for (const std::string& name : names) {
    if (manifest.files.count(name) == 0) {
      throw bad_bundle(directory + "/" + name +
                       " is not part of the bundle; remove it, or export again with --tokenizer");
    }
  }
}

}  // namespace

Bundle::Bundle(const std::string& directory)
    : directory_(without_slash(directory)), manifest_(read_manifest(directory_)) {
  for (const auto& [name, entry] : manifest_.files) {
    check_size(path(name), entry);
    if (name != kWeightsFile) check_hash(path(name), entry);
  }
  check_tokenizer_folder(directory_, manifest_);
}

void Bundle::check_hashes() const {
  for (const auto& [name, entry] : manifest_.files) check_hash(path(name), entry);
  const Safetensors header(weights());  // which may be wrong in a file that has its hash
}

const Json& Bundle::target(const std::string& name) const {
  const auto found = manifest_.targets.find(name);
  if (found != manifest_.targets.end()) return found->second;
  std::vector<std::string> known;
  for (const auto& [target, entry] : manifest_.targets) known.push_back(target);
  throw bad_bundle(directory_ + " has no target '" + name + "'; it has: " + (known.empty() ? "none" : join(known)));
}

}  // namespace skrr
