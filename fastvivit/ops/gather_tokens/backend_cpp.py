"""gather_tokens by the compiled CPU kernels (csrc/rows_cpu.cpp)."""

from fastvivit.ops._rows_native import gather_rows, segment_sum

forward = gather_rows
backward = segment_sum
