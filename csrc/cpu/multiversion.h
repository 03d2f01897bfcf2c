// Hot loops are compiled for several instruction sets, and one is chosen when the library loads: a wheel must
// run on any x86-64 and still use the machine's vectors. Templates cannot use this: their clones would have
// the same symbol.
#pragma once

#include <cstdlib>  // defines __GLIBC__, whose loader resolves the clones

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define KRADAGRAD_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define KRADAGRAD_MULTIVERSION
#endif

// The body of a multiversioned function, written once for both dtypes.
#define KRADAGRAD_INLINE inline __attribute__((always_inline))
