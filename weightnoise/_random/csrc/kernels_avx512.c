#include "engine.h"
#ifdef X86
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,prefer-vector-width=512")
#define KERNELS kernels_avx512
#include "kernels.h"
#endif
