// All CPU kernels for the target under which this is included, as the table COPILOT_TABLE. No include guard.

#include "candidate_loss.h"
#include "largest.h"
#include "mistake_cross_entropy.h"
#include "pool_layers.h"
#include "rectify.h"
#include "rectify_sample.h"

namespace copilot {
const CpuKernels COPILOT_TABLE = {
    COPILOT_NAME,
    COPILOT_TARGET::pool_layers,
    COPILOT_TARGET::candidate_loss,
    COPILOT_TARGET::candidate_loss_backward,
    COPILOT_TARGET::rectification::reduce_row,
    COPILOT_TARGET::rectification::total_row,
    COPILOT_TARGET::rectification::write_row,
    COPILOT_TARGET::sampling::sample_row,
    COPILOT_TARGET::mistake_cross_entropy,
    COPILOT_TARGET::mistake_cross_entropy_backward,
};
}  // namespace copilot
