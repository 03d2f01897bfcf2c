// Splits PTX text into tokens.
#pragma once
#include <string_view>
#include <vector>

#include "common.h"

namespace ptx {

struct Token {
  std::string_view text;  // a word, a number, a quoted string or one punctuation mark
  int line = 0;
  bool is(char c) const { return text.size() == 1 && text[0] == c; }
  bool is(std::string_view s) const { return text == s; }
};

// Returns tokens whose views point into `source`, which must outlive them.
std::vector<Token> tokenize(std::string_view source);

[[noreturn]] void fail(int line, const std::string& message);

}  // namespace ptx
