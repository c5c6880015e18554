// What tells this library from one that was compiled from other sources.
#include "kernels.h"

#define TEXT(name) #name
#define TEXT_OF(name) TEXT(name)

extern "C" __attribute__((visibility("default"))) const char* kernels_fingerprint() { return TEXT_OF(KERNELS_FINGERPRINT); }
