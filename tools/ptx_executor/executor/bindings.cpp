// The Python module.  Arguments are checked and named in Python (ptx_executor/api.py).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "decode.h"
#include "launch.h"
#include "opcodes.h"
#include "parser.h"

namespace py = pybind11;

namespace ptx {

namespace {

class Kernel {
 public:
  Kernel(const std::string& text, const std::string& entry) : program_(parse(text, entry)) {
    for (ModuleVariable& v : program_.variables) {
      variables_.place(v.bytes.data(), v.bytes.size(), v.name, v.writable, false);
    }
  }

  const Program& program() const { return program_; }

  py::dict launch(DeviceMemory& memory, const Options& options) {
    LaunchResult result;
    {
      py::gil_scoped_release release;
      result = ptx::launch(program_, memory, variables_, options);
    }
    py::dict d;
    d["reports"] = reports(result.reports);
    d["counters"] = counters(result);
    return d;
  }

 private:
  std::string file(const Origin& origin) const {
    return static_cast<size_t>(origin.file) < program_.files.size() ? program_.files[origin.file]
                                                                    : std::string();
  }

  py::list reports(const std::vector<Report>& all) const {
    py::list list;
    for (const Report& r : all) {
      const Origin& o = program_.origins[r.instruction];
      py::dict d;
      d["kind"] = r.kind;
      d["ptx_line"] = o.ptx_line;
      d["source_file"] = file(o);
      d["source_line"] = o.source_line;
      d["count"] = r.count;
      d["example"] = r.example;
      d["instruction"] = o.text;
      list.append(d);
    }
    return list;
  }

  // by_opcode and by_line have only executed instructions, `instructions` has all.
  py::dict counters(const LaunchResult& result) const {
    const Counters& c = result.counters;
    InstructionCounters total;
    py::dict d, by_opcode;
    py::list by_line, instructions;
    std::map<std::string, InstructionCounters> sums;
    for (size_t k = 0; k < c.instructions.size(); ++k) {
      const InstructionCounters& i = c.instructions[k];
      const Origin& o = program_.origins[k];
      instructions.append(py::make_tuple(o.ptx_line, o.opcode, i.issued));
      if (!sum_of(i.issued)) continue;
      add(total, i);
      add(sums[o.opcode], i);
      if (!o.touches_memory) continue;
      py::dict line = memory_counters(i);
      line["ptx_line"] = o.ptx_line;
      line["source_file"] = file(o);
      line["source_line"] = o.source_line;
      line["opcode"] = o.opcode;
      by_line.append(line);
    }
    for (const auto& [opcode, sum] : sums) by_opcode[opcode.c_str()] = memory_counters(sum);
    d["warp_instructions"] = sum_of(total.issued);
    d["thread_instructions"] = total.threads;
    d["scheduler_instructions"] = total.issued;
    d["mma"] = sum_of(c.mma);
    d["scheduler_mma"] = c.mma;
    d["block_barriers"] = c.block_barriers;
    d["divergent_groups"] = c.divergent_groups;
    d["benign_writes"] = c.benign_writes;
    d["global_read_bytes"] = c.global_read_bytes;
    d["global_write_bytes"] = c.global_write_bytes;
    d["global_read_sectors"] = c.global_read_sectors;
    d["global_write_sectors"] = c.global_write_sectors;
    d["footprint_read_bytes"] = result.footprint_read;
    d["footprint_write_bytes"] = result.footprint_written;
    d["shared_wavefronts"] = total.wavefronts;
    d["shared_ideal_wavefronts"] = total.ideal;
    d["by_opcode"] = by_opcode;
    d["by_line"] = by_line;
    d["instructions"] = instructions;
    return d;
  }

  static void add(InstructionCounters& sum, const InstructionCounters& i) {
    for (int s = 0; s < kSchedulers; ++s) sum.issued[s] += i.issued[s];
    sum.threads += i.threads;
    sum.bytes += i.bytes;
    sum.sectors += i.sectors;
    sum.wavefronts += i.wavefronts;
    sum.ideal += i.ideal;
  }

  static py::dict memory_counters(const InstructionCounters& i) {
    py::dict d;
    d["n"] = sum_of(i.issued);
    d["threads"] = i.threads;
    d["bytes"] = i.bytes;
    d["sectors"] = i.sectors;
    d["wavefronts"] = i.wavefronts;
    d["ideal"] = i.ideal;
    return d;
  }

  Program program_;
  DeviceMemory variables_{kVariableBase};
};

Options make_options(std::array<u32, 3> grid, std::array<u32, 3> block, const std::string& parameters,
                     u32 dynamic_shared, u64 seed, bool races, bool counters, u64 step_limit) {
  return {grid,     block,     {parameters.begin(), parameters.end()}, dynamic_shared, seed, races,
          counters, step_limit};
}

u64 place(DeviceMemory& memory, u64 pointer, u64 size, const std::string& name, bool writable,
          bool uninitialised) {
  return memory.place(reinterpret_cast<u8*>(pointer), size, name, writable, uninitialised);
}

std::vector<std::tuple<std::string, u32, u32>> parameters(const Kernel& kernel) {
  std::vector<std::tuple<std::string, u32, u32>> list;
  for (const Parameter& p : kernel.program().parameters) list.emplace_back(p.name, p.offset, p.size);
  return list;
}

std::vector<std::string> opcodes() {
  std::vector<std::string> names;
  for (const auto& [name, opcode] : opcode_table()) names.push_back(name);
  return names;
}

}  // namespace

}  // namespace ptx

PYBIND11_MODULE(_executor, m) {
  using namespace ptx;
  py::register_exception<ParseError>(m, "ParseError");
  py::register_exception<ExecutionError>(m, "ExecutionError");
  py::register_exception<StepLimit>(m, "StepLimit");
  py::class_<DeviceMemory>(m, "Memory").def(py::init<>()).def("place", &place);
  py::class_<Options>(m, "Options").def(py::init(&make_options));
  py::class_<Kernel>(m, "Kernel")
      .def(py::init<const std::string&, const std::string&>())
      .def("launch", &Kernel::launch)
      .def_property_readonly("name", [](const Kernel& k) { return k.program().name; })
      .def_property_readonly("static_shared", [](const Kernel& k) { return k.program().static_shared; })
      .def_property_readonly("parameter_bytes", [](const Kernel& k) { return k.program().parameter_bytes; })
      .def_property_readonly("max_threads", [](const Kernel& k) { return k.program().max_threads; })
      .def_property_readonly("parameters", &parameters);
  m.def("opcodes", &opcodes);
  m.def("canonical", &canonical);
}
