// The CPU kernels for any processor.

#include "standard.h"

#define COPILOT_TARGET portable
#define COPILOT_LANES 4
#define COPILOT_TABLE kPortable
#define COPILOT_NAME "portable"
#include "vector.h"
#include "kernels.h"
