// The Python face of the CPU library: what it was built with, and which instruction set its kernels run on.
// Only pybind11 and the stable headers: torch/extension.h would tie the library to one torch version.
#include <pybind11/pybind11.h>
#include <torch/headeronly/version.h>

#include <string>

#include "cpu/attention_tiles.h"
#include "cpu/simd.h"
#include "cpu/vector_mlp.h"
#include "schemas.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU operators of puma_plugin (registered in torch.ops.puma) and facts about this build.";
  puma::instruction_set();  // a wrong PUMA_CPU_CAPABILITY is an error here, not in the first kernel
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["compiler"] = std::string("g++ compatible ") + __VERSION__;
        info["torch_headers"] = std::to_string(TORCH_VERSION_MAJOR) + "." + std::to_string(TORCH_VERSION_MINOR) + "." +
            std::to_string(TORCH_VERSION_PATCH);
        info["cxx_standard"] = static_cast<long>(__cplusplus);
        return info;
      },
      "Compiler, torch headers and C++ standard that this library was built with, as a dict.");
  m.attr("schemas") = puma::kSchemas;
  m.def(
      "cpu_capability", &puma::cpu_capability,
      "Instruction set of the kernels here: amx, avx512_bf16, avx512_vnni, avx512, avx2 or default.");
  m.def(
      "frozen_mlp_serves", &puma::vectors_serve_mlp, py::arg("in_features"), py::arg("hidden_features"),
      py::arg("out_features"), "Whether frozen_mlp has a kernel for these widths here.");
  m.def(
      "packed_attention_serves", &puma::attention_tiles_serve, py::arg("tokens"), py::arg("head_dim"),
      py::arg("bfloat16") = false,
      "Whether the operators of packed attention should be called with qkv of this N and D on the CPU.");
}
