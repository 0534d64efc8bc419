// gear_decode: continues a sequence of tokens with an engine that gear-export built, greedily.
//
//   gear_decode --tensorrt libnvinfer.so.11 --plugin libgear_trt_plugins.so --engine FILE
//               --tokens 1,2,3 [--new 32] [--eos 2]
//
// Token ids go to standard output as they come. Exit status: 0 done, 1 failed, 2 wrong usage.

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_driver.h"
#include "decoder.h"
#include "tensorrt_library.h"

namespace {

constexpr char kUsage[] =
    "usage: gear_decode --tensorrt LIBRARY --plugin LIBRARY --engine FILE --tokens 1,2,3 "
    "[--new 32] [--eos ID]\n";

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Options {
 public:
  Options(int count, char** words) {
    for (int i = 1; i < count; i += 2) {
      const std::string name = words[i];
      if (name.rfind("--", 0) != 0 || i + 1 == count) throw UsageError("what is " + name + "?");
      values_[name.substr(2)] = words[i + 1];
    }
  }

  std::string text(const std::string& name) const {
    const auto found = values_.find(name);
    if (found == values_.end()) throw UsageError("--" + name + " is missing");
    return found->second;
  }

  int64_t number(const std::string& name, int64_t otherwise) const {
    return values_.count(name) == 0 ? otherwise : parse(values_.at(name));
  }

  std::vector<int64_t> numbers(const std::string& name) const {
    std::vector<int64_t> found;
    std::istringstream words(text(name));
    for (std::string word; std::getline(words, word, ',');) found.push_back(parse(word));
    if (found.empty()) throw UsageError("--" + name + " has no number");
    return found;
  }

 private:
  static int64_t parse(const std::string& word) {
    char* end = nullptr;
    const int64_t number = std::strtoll(word.c_str(), &end, 10);
    if (word.empty() || *end != '\0' || number < 0)
      throw UsageError(word + " is no token or count");
    return number;
  }

  std::map<std::string, std::string> values_;
};

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open the engine " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// What the plugin's kernels noted of a step's data, for instance a key that is not finite.
void raise_faults(const std::string& plugin) {
  void* library = dlopen(plugin.c_str(), RTLD_NOW);
  using Status = int (*)(char*, size_t);
  const auto status = reinterpret_cast<Status>(dlsym(library, "gear_tensorrt_status"));
  char text[512];
  if (status != nullptr && status(text, sizeof(text)) != 0) throw std::runtime_error(text);
}

void decode(const Options& options) {
  const std::vector<int64_t> prompt = options.numbers("tokens");
  const int64_t count = options.number("new", 32);
  const int64_t eos = options.number("eos", -1);
  const std::string plugin = options.text("plugin");
  const std::string blob = read_file(options.text("engine"));

  const CudaDriver cuda;  // first: without a GPU, TensorRT fails in worse ways
  const TensorRTLibrary tensorrt(options.text("tensorrt"));
  Log log;
  const auto runtime = tensorrt.create_runtime(log);
  tensorrt.load_plugins(plugin);
  const std::unique_ptr<nvinfer1::ICudaEngine> engine(
      runtime->deserializeCudaEngine(blob.data(), blob.size()));
  if (engine == nullptr) {
    throw std::runtime_error(
        "TensorRT does not load this engine: it was built by another version, "
        "or for another GPU");
  }

  Decoder decoder(*engine, cuda, static_cast<int>(prompt.size() + count));
  int64_t token = decoder.step(prompt);
  for (int64_t i = 0; i < count && token != eos; ++i) {
    raise_faults(plugin);
    std::printf(i == 0 ? "%lld" : " %lld", static_cast<long long>(token));
    std::fflush(stdout);
    if (i + 1 < count) token = decoder.step({token});
  }
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    decode(Options(argc, argv));
    return 0;
  } catch (const UsageError& error) {
    std::fprintf(stderr, "gear_decode: %s\n%s", error.what(), kUsage);
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gear_decode: %s\n", error.what());
    return 1;
  }
}
