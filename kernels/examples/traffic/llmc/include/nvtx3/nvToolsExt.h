// In place of NVIDIA's header, which the pinned compiler does not bring: ranges for a profiler that nobody runs.
#pragma once

inline int nvtxRangePush(const char *) { return 0; }
inline int nvtxRangePop() { return 0; }
