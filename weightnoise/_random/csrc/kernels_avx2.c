#include "engine.h"
#ifdef X86
#pragma GCC target("avx2")
#define KERNELS kernels_avx2
#include "kernels.h"
#endif
