/* Sanitizers and emulation take ten times as long: loops over more of the same are shorter there. */
#ifndef PENSTOCK_TESTS_THINNED_H
#define PENSTOCK_TESTS_THINNED_H

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__) || !defined(__x86_64__)
#define THINNED(whole, thin) (thin)
#else
#define THINNED(whole, thin) (whole)
#endif

#endif
