// Stands in for the header of this name, which ATen/functorch/Interpreter.h includes and torch's
// packages lack. Only its serialization of interpreters names anything from it, and nothing here
// calls that, so declarations are enough. Searched last: the real header goes first where there is
// one.
#pragma once

#include <string>

namespace nlohmann {

class json {
 public:
  json();
  template <class Value>
  json(const Value&);

  static json parse(const std::string&);
  std::string dump() const;
  template <class Value>
  Value get() const;
};

}  // namespace nlohmann
