// The Python face of the CPU library: which instruction set its kernels run on, and what they take.
// Only pybind11 and the stable headers: torch/extension.h would tie the library to one torch version.
#include <pybind11/pybind11.h>

#include "cpu/attention_tiles.h"
#include "cpu/simd.h"
#include "cpu/vector_mlp.h"
#include "schemas.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU operators of puma_plugin (registered in torch.ops.puma).";
  puma::instruction_set();  // a wrong PUMA_CPU_CAPABILITY is an error here, not in the first kernel
  m.attr("schemas") = puma::kSchemas;
  m.def(
      "cpu_capability", &puma::cpu_capability,
      "Instruction set of the kernels here: amx, avx512_bf16, avx512_vnni, avx512, avx2 or default.");
  // What the operators take, as numbers: compiled code can compare with them, but not call a function here.
  m.def(
      "frozen_mlp_limits",
      [] {
        py::dict limits;
        limits["width_multiple"] = puma::mlp_width_multiple();
        limits["more_slope_rows"] = puma::kMoreSlopeRows;
        limits["slope_columns"] = puma::kSlopeColumns;
        limits["slope_bytes"] = puma::kSlopeBytes;
        return limits;
      },
      "Of frozen_mlp: all widths are multiples of width_multiple (0: there are no kernels here); slopes come as "
      "(rows + more_slope_rows, hidden filled up to a multiple of slope_columns, slope_bytes).");
  m.def(
      "packed_attention_limits",
      [] {
        py::dict limits;
        limits["most_tokens"] = puma::most_attention_tokens();
        limits["most_head_dim"] = puma::kMostHeadDim;
        limits["head_dim_multiple"] = puma::kHeadDimMultiple;
        limits["bfloat16"] = puma::attention_tiles_should_run_bf16();
        return limits;
      },
      "Of packed attention: N up to most_tokens (0: there are no kernels here), D up to most_head_dim and a multiple of "
      "head_dim_multiple, and whether bfloat16 should be computed so.");
}
