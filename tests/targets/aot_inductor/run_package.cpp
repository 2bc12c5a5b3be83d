// Runs a bundle's AOTInductor package with libtorch alone, on weights that stay mapped.
//
//   run_package PACKAGE WEIGHTS TENSORS IDS MASK OUTPUT BATCH SEQUENCE
//
// TENSORS has a line for each tensor: name offset rank size...; all are float32. IDS and MASK are raw int64, OUTPUT is
// raw float32. A test makes these, so that this file needs no JSON.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <fstream>
#include <iostream>
#include <string>
#include <unordered_map>
#include <vector>

#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

static at::Tensor read_ids(const std::string& path, int64_t batch, int64_t sequence) {
  at::Tensor ids = at::empty({batch, sequence}, at::kLong);
  std::ifstream(path, std::ios::binary).read(static_cast<char*>(ids.data_ptr()), ids.nbytes());
  return ids;
}

int main(int argc, char** argv) {
  if (argc != 9) return 2;
  const int64_t batch = std::stoll(argv[7]), sequence = std::stoll(argv[8]);
  const int file = open(argv[2], O_RDONLY);
  struct stat status {};
  fstat(file, &status);
  char* mapped = static_cast<char*>(mmap(nullptr, status.st_size, PROT_READ, MAP_PRIVATE, file, 0));

  std::unordered_map<std::string, at::Tensor> weights;
  std::ifstream tensors(argv[3]);
  std::string name;
  int64_t offset = 0, rank = 0;
  while (tensors >> name >> offset >> rank) {
    std::vector<int64_t> sizes(rank);
    for (auto& size : sizes) tensors >> size;
    weights.emplace(name, at::from_blob(mapped + offset, sizes, at::kFloat));
  }

  c10::InferenceMode guard;
  torch::inductor::AOTIModelPackageLoader loader(argv[1]);
  loader.load_constants(weights, /*use_inactive=*/false, /*check_full_update=*/true, /*user_managed=*/true);
  const auto outputs = loader.run({read_ids(argv[4], batch, sequence), read_ids(argv[5], batch, sequence)});
  const at::Tensor hidden = outputs.at(0).contiguous();
  std::ofstream(argv[6], std::ios::binary).write(static_cast<const char*>(hidden.data_ptr()), hidden.nbytes());
  std::cout << hidden.sizes() << std::endl;
}
