// A library with the entry points and tables of TensorRT 11 that gear_decode uses, over one model:
// after the tokens that it has been fed so far, the likeliest next one is their sum modulo 100. It
// checks what it is given, and writes one line per run to standard error.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

namespace {

constexpr int kVocab = 100;
constexpr int64_t kFree = -1;

struct Dims {
  int32_t rank;
  int64_t d[8];
};

struct Tensor {
  int32_t type;  // 0 float, 1 half, 3 int32, 8 int64
  bool is_input;
  Dims dims;
  Dims largest[2];  // by profile: prompts, single tokens
};

const std::map<std::string, Tensor> kTensors = {
    {"input_ids", {8, true, {2, {kFree, kFree}}, {{2, {4, 5}}, {2, {8, 1}}}}},
    {"page_table", {3, true, {2, {kFree, kFree}}, {{2, {4, 16}}, {2, {8, 16}}}}},
    {"slots", {3, true, {1, {kFree}}, {}}},
    {"past_lengths", {3, true, {1, {kFree}}, {}}},
    {"new_lengths", {3, true, {1, {kFree}}, {}}},
    {"page_pool.0", {3, true, {3, {kFree, 2, 10}}, {}}},
    {"residual_buffer.0", {1, true, {5, {kFree, 2, 2, 68, 32}}, {}}},
    {"page_pool_out.0", {3, false, {3, {kFree, 2, 10}}, {}}},
    {"residual_buffer_out.0", {1, false, {5, {kFree, 2, 2, 68, 32}}, {}}},
    {"logits", {0, false, {3, {kFree, kFree, kVocab}}, {}}},
};

// An object as TensorRT's: its own table (destructors), then the implementation.
struct Object {
  void** destructors;
  void* implementation;
};

struct Implementation {
  void** table;
};

[[noreturn]] void fail(const char* text) {
  std::fprintf(stderr, "fake TensorRT: %s\n", text);
  std::abort();
}

void require(bool is_right, const char* text) {
  if (!is_right) fail(text);
}

[[noreturn]] void unused() { fail("a function that gear_decode must not use was called"); }
void destroy(void*) {}

template <typename Function>
void* entry(Function* function) {
  return reinterpret_cast<void*>(function);
}

struct Table {
  Table() {
    for (void*& each : entries) each = entry(&unused);
  }
  void* entries[64];
};

void* g_destructors[2] = {entry(&destroy), entry(&destroy)};

struct Context {
  void** table;
  int32_t profile = -1;
  std::map<std::string, Dims> shapes;
  std::map<std::string, void*> addresses;

  template <typename Element>
  Element* at(const char* name) {
    require(addresses.count(name) == 1, name);
    return static_cast<Element*>(addresses[name]);
  }
};

bool set_profile(Context* context, int32_t profile, void*) {
  context->profile = profile;
  return true;
}

bool set_input_shape(Context* context, const char* name, const Dims* dims) {
  const Tensor& tensor = kTensors.at(name);
  require(tensor.is_input && dims->rank == tensor.dims.rank, name);
  for (int i = 0; i < dims->rank; ++i) {
    require(dims->d[i] > 0, name);
    require(tensor.dims.d[i] == kFree || tensor.dims.d[i] == dims->d[i], name);
    const Dims& largest = tensor.largest[context->profile];
    if (largest.rank != 0 && dims->d[i] > largest.d[i]) return false;
  }
  context->shapes[name] = *dims;
  return true;
}

bool set_address(Context* context, const char* name, void* address) {
  require(kTensors.count(name) == 1, name);
  require(reinterpret_cast<uintptr_t>(address) % 256 == 0, "an address is not aligned");
  context->addresses[name] = address;
  return true;
}

bool enqueue(Context* context, void*) {
  for (const auto& [name, tensor] : kTensors) {
    require(context->addresses.count(name) == 1, name.c_str());
    require(!tensor.is_input || context->shapes.count(name) == 1, name.c_str());
  }
  require(context->at<void>("page_pool.0") == context->at<void>("page_pool_out.0"), "not in place");
  const int64_t count = context->shapes["input_ids"].d[1];
  const int64_t pages = context->shapes["page_table"].d[1];
  for (int64_t i = 0; i < pages; ++i) require(context->at<int32_t>("page_table")[i] == i, "pages");
  require(context->shapes["page_pool.0"].d[0] == pages, "pool and table differ");
  require(*context->at<int32_t>("new_lengths") == count, "new_lengths");
  require(*context->at<int32_t>("slots") == 0, "slots");
  // The state is the sum and the number of the tokens so far.
  int32_t* state = context->at<int32_t>("page_pool.0");
  require(*context->at<int32_t>("past_lengths") == state[1], "past_lengths");
  float* logits = context->at<float>("logits");
  for (int64_t i = 0; i < count; ++i) {
    state[0] += static_cast<int32_t>(context->at<int64_t>("input_ids")[i]);
    for (int j = 0; j < kVocab; ++j) logits[i * kVocab + j] = j == state[0] % kVocab ? 1.0f : 0.0f;
  }
  state[1] += static_cast<int32_t>(count);
  std::fprintf(stderr, "profile %d: %d tokens, %d pages\n", context->profile,
               static_cast<int>(count), static_cast<int>(pages));
  return true;
}

Object* create_context(void*, int32_t) {
  static Table table;
  table.entries[16] = entry(&set_profile);
  table.entries[20] = entry(&set_input_shape);
  table.entries[23] = entry(&set_address);
  table.entries[36] = entry(&enqueue);
  return new Object{g_destructors, new Context{table.entries, -1, {}, {}}};
}

int32_t num_profiles(void*) { return 2; }
Dims shape(void*, const char* name) { return kTensors.at(name).dims; }
int32_t data_type(void*, const char* name) { return kTensors.at(name).type; }
int32_t io_mode(void*, const char* name) { return kTensors.at(name).is_input ? 1 : 2; }
Dims profile_shape(void*, const char* name, int32_t profile, int32_t which) {
  require(which == 2, "only the largest shapes count");
  return kTensors.at(name).largest[profile];
}
int32_t num_tensors(void*) { return static_cast<int32_t>(kTensors.size()); }
const char* tensor_name(void*, int32_t index) {
  return std::next(kTensors.begin(), index)->first.c_str();
}

Object* deserialize(void*, const void* blob, size_t size) {
  constexpr char kExpected[] = "an engine";
  if (size != sizeof(kExpected) - 1 || std::memcmp(blob, kExpected, size) != 0) return nullptr;
  static Table table;
  table.entries[5] = entry(&create_context);
  table.entries[8] = entry(&num_profiles);
  table.entries[15] = entry(&shape);
  table.entries[16] = entry(&data_type);
  table.entries[19] = entry(&io_mode);
  table.entries[25] = entry(&profile_shape);
  table.entries[26] = entry(&num_tensors);
  table.entries[27] = entry(&tensor_name);
  return new Object{g_destructors, new Implementation{table.entries}};
}

void* load_library(void*, const char* path) {
  static int handle;
  return std::strstr(path, "libgear_trt_plugins") == nullptr ? nullptr : &handle;
}

}  // namespace

extern "C" {

int32_t getInferLibVersion() {
  const char* version = std::getenv("FAKE_TENSORRT_VERSION");
  return version == nullptr ? 110400 : std::atoi(version);
}

void* createInferRuntime_INTERNAL(void* logger, int32_t version) {
  if (logger == nullptr || version != getInferLibVersion()) return nullptr;
  static Table table;
  table.entries[3] = entry(&deserialize);
  return new Object{g_destructors, new Implementation{table.entries}};
}

void* getPluginRegistry() {
  static Table table;
  table.entries[6] = entry(&load_library);
  static Implementation registry{table.entries};
  return &registry;
}

}  // extern "C"
