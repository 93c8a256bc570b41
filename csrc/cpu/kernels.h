// All CPU kernels for the target under which this is included, as the table COPILOT_TABLE. No include guard.

#include "largest.h"
#include "mistake_cross_entropy.h"
#include "pool_layers.h"

namespace copilot {
const CpuKernels COPILOT_TABLE = {COPILOT_NAME, COPILOT_TARGET::pool_layers, COPILOT_TARGET::mistake_cross_entropy,
                                  COPILOT_TARGET::mistake_cross_entropy_backward};
}  // namespace copilot
