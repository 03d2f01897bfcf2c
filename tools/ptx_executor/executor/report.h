// Faults that the checks found, with one entry for each kind and instruction.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "common.h"

namespace ptx {

struct Report {
  std::string kind;
  int instruction = 0;
  u64 count = 0;
  std::string example;
};

class Reports {
 public:
  // `describe` returns the example; it is called only for the first report of its kind at this instruction.
  template <class F>
  void add(const char* kind, int instruction, F describe) {
    auto [it, added] = index_.try_emplace({instruction, kind}, reports_.size());
    if (added) reports_.push_back({kind, instruction, 0, describe()});
    ++reports_[it->second].count;
  }
  const std::vector<Report>& all() const { return reports_; }

 private:
  std::vector<Report> reports_;
  std::map<std::pair<int, std::string>, size_t> index_;
};

}  // namespace ptx
