// All CPU kernels for the target under which this is included, as the table COPILOT_TABLE. No include guard.

#include "pool_layers.h"
#include "rectify_sample.h"

namespace copilot {
const CpuKernels COPILOT_TABLE = {COPILOT_NAME, COPILOT_TARGET::pool_layers, COPILOT_TARGET::sampling::rectify_sample};
}  // namespace copilot
