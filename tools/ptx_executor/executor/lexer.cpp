#include "lexer.h"

#include <array>

namespace ptx {

void fail(int line, const std::string& message) {
  throw ParseError("PTX line " + std::to_string(line) + ": " + message);
}

namespace {

// Characters of words; a table is fast enough for modules of many megabytes.
constexpr auto kWord = [] {
  std::array<bool, 256> table{};
  for (char c : std::string_view("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.$%")) {
    table[static_cast<u8>(c)] = true;
  }
  return table;
}();

bool is_word(char c) { return kWord[static_cast<u8>(c)]; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v'; }

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  std::vector<Token> run() {
    tokens_.reserve(source_.size() / 4);
    while (at_ < source_.size()) step();
    return std::move(tokens_);
  }

 private:
  char peek(size_t ahead = 0) const { return at_ + ahead < source_.size() ? source_[at_ + ahead] : '\0'; }

  void step() {
    const char c = peek();
    if (c == '\n') {
      ++line_;
      ++at_;
    } else if (is_space(c)) {
      ++at_;
    } else if (c == '/' && peek(1) == '/') {
      while (at_ < source_.size() && peek() != '\n') ++at_;
    } else if (c == '/' && peek(1) == '*') {
      skip_block_comment();
    } else if (c == '"') {
      quoted();
    } else if (is_word(c) || (c == '-' && is_digit(peek(1)))) {
      word();
    } else {
      emit(at_, at_ + 1);
    }
  }

  void skip_block_comment() {
    const size_t end = source_.find("*/", at_ + 2);
    if (end == std::string_view::npos) fail(line_, "unterminated comment");
    for (; at_ < end + 2; ++at_) line_ += source_[at_] == '\n';
  }

  void quoted() {
    const size_t end = source_.find('"', at_ + 1);
    if (end == std::string_view::npos) fail(line_, "unterminated string");
    emit(at_, end + 1);
  }

  // "::" belongs to a word (L1::no_allocate), a single ':' ends a label.
  void word() {
    size_t end = at_ + 1;
    while (end < source_.size()) {
      if (is_word(source_[end])) {
        ++end;
      } else if (source_.compare(end, 2, "::") == 0) {
        end += 2;
      } else {
        break;
      }
    }
    emit(at_, end);
  }

  void emit(size_t begin, size_t end) {
    tokens_.push_back({source_.substr(begin, end - begin), line_});
    at_ = end;
  }

  std::string_view source_;
  size_t at_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace ptx
