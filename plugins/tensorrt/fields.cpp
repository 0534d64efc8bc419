#include "tensorrt/fields.h"

#include <climits>
#include <cstring>

namespace gear::trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

// Attributes that are text: an engine must have been made for what this library is.
constexpr char kLayoutHashName[] = "layout_hash";
struct Text {
  const char* name;
  const char* value;
};
constexpr Text kTexts[] = {{kLayoutHashName, kLayoutHash},
                           {"plugin_version", gear_attention::kPluginVersion},
                           {"plugin_namespace", gear_attention::kPluginNamespace}};

PluginFieldType type_of(int) { return PluginFieldType::kINT32; }
PluginFieldType type_of(float) { return PluginFieldType::kFLOAT32; }

PluginField text_field(const Text& text) {
  return {text.name, text.value, PluginFieldType::kCHAR, static_cast<int32_t>(strlen(text.value))};
}

const PluginField* find(const PluginFieldCollection& fields, const char* name) {
  for (int i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    if (field.name != nullptr && strcmp(field.name, name) == 0) return &field;
  }
  return nullptr;
}

Error wrong_type(const PluginField& field, const char* expected) {
  return std::string("attribute ") + field.name + " has field type " +
         std::to_string(static_cast<int>(field.type)) + " and length " +
         std::to_string(field.length) + ", expected " + expected;
}

// Parsers give integers as 32 or 64 bits.
Error read(const PluginField& field, int& member) {
  const bool is_one = field.data != nullptr && field.length == 1;
  if (is_one && field.type == PluginFieldType::kINT32) {
    memcpy(&member, field.data, sizeof(member));
    return {};
  }
  if (!is_one || field.type != PluginFieldType::kINT64) return wrong_type(field, "one INT32");
  int64_t value = 0;
  memcpy(&value, field.data, sizeof(value));
  if (value < INT_MIN || value > INT_MAX) {
    return std::string("attribute ") + field.name + " is " + std::to_string(value) +
           ", which is no 32-bit number";
  }
  member = static_cast<int>(value);
  return {};
}

Error read(const PluginField& field, float& member) {
  if (field.data == nullptr || field.length != 1 || field.type != PluginFieldType::kFLOAT32) {
    return wrong_type(field, "one FLOAT32");
  }
  memcpy(&member, field.data, sizeof(member));
  return {};
}

Error read(const PluginField& field, std::string& text) {
  if (field.data == nullptr || field.length < 0 || field.type != PluginFieldType::kCHAR) {
    return wrong_type(field, "CHAR");
  }
  text.assign(static_cast<const char*>(field.data), static_cast<size_t>(field.length));
  text.resize(strlen(text.c_str()));  // some callers count the terminator
  return {};
}

Error check_text(const PluginFieldCollection& fields, const Text& expected) {
  const PluginField* const field = find(fields, expected.name);
  if (field == nullptr) {
    if (expected.name != kLayoutHashName) return {};
    return std::string("attribute ") + expected.name +
           " is missing; export the model again with gear-export";
  }
  std::string text;
  if (Error error = read(*field, text); !error.empty() || text == expected.value) return error;
  return std::string("made for ") + expected.name + " " + text + ", this library has " +
         expected.value + "; export the model and build the engine again";
}

Error check_known(const PluginFieldCollection& fields) {
  const std::vector<PluginField> names = field_names();
  const PluginFieldCollection known{static_cast<int32_t>(names.size()), names.data()};
  for (int i = 0; i < fields.nbFields; ++i) {
    const char* const name = fields.fields[i].name;
    if (name == nullptr || find(known, name) == nullptr) {
      return std::string("unknown attribute ") + (name == nullptr ? "without a name" : name);
    }
  }
  return {};
}

Error read_numbers(const PluginFieldCollection& fields, GearAttentionAttributes& attributes) {
  Error error;
  for_each_attribute(attributes, [&](const char* name, auto& member, bool is_required) {
    if (!error.empty()) return;
    if (const PluginField* const field = find(fields, name); field != nullptr) {
      error = read(*field, member);
    } else if (is_required) {
      error = std::string("attribute ") + name + " is missing";
    }
  });
  return error;
}

Error read_all(const PluginFieldCollection& fields, GearAttentionAttributes& attributes) {
  for (const Text& text : kTexts) {  // first: another layout may have other attributes
    if (Error error = check_text(fields, text); !error.empty()) return error;
  }
  if (Error error = check_known(fields); !error.empty()) return error;
  if (Error error = read_numbers(fields, attributes); !error.empty()) return error;
  return check_attributes(attributes);
}

template <typename Attributes, typename Number>
std::vector<PluginField> list_fields(Attributes& attributes, Number&& number) {
  std::vector<PluginField> list;
  for_each_attribute(attributes, [&](const char* name, const auto& member, bool) {
    list.push_back(number(name, member));
  });
  for (const Text& text : kTexts) list.push_back(text_field(text));
  return list;
}

}  // namespace

Error read_fields(const PluginFieldCollection* fields, GearAttentionAttributes& attributes) {
  const PluginFieldCollection none;
  const Error error = read_all(fields == nullptr ? none : *fields, attributes);
  return error.empty() ? error : std::string(gear_attention::kName) + ": " + error;
}

std::vector<PluginField> field_names() {
  const GearAttentionAttributes none{};
  std::vector<PluginField> names = list_fields(none, [](const char* name, const auto& member) {
    return PluginField(name, nullptr, type_of(member), 1);
  });
  for (PluginField& field : names) field.data = nullptr;
  return names;
}

std::vector<PluginField> field_values(const GearAttentionAttributes& attributes) {
  return list_fields(attributes, [](const char* name, const auto& member) {
    return PluginField(name, &member, type_of(member), 1);
  });
}

std::string node_name(const GearAttentionAttributes& attributes) {
  return std::string(gear_attention::kName) + " layer " + std::to_string(attributes.layer);
}

}  // namespace gear::trt
