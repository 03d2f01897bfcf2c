// Definitions that older systems lack, for a library that is linked for an older glibc (KRADAGRAD_GLIBC).
//
// manylinux_2_28 has glibc 2.28 and libstdc++ 3.4.24. The headers of later compilers call a few short
// functions of later libraries. Here they are part of the library, and `exports.map` hides them. Everything
// else, above all exceptions, is in the libstdc++ of the system, which torch uses as well.

#include <new>
#include <sstream>
#include <string>

// glibc 2.32. Always false: std::shared_ptr counts with atomics even in a process with one thread.
extern "C" {
char __libc_single_threaded = 0;
}

namespace std {

// 3.4.29
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
template string stringbuf::str() const&;
template string stringbuf::str() &&;

// 3.4.26
template ostringstream::basic_ostringstream();
template stringstream::basic_stringstream();

}  // namespace std
