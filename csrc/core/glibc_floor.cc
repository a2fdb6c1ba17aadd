// Only in portable builds. libstdc++ reads this variable, which libc has had since 2.32, to skip atomics
// while a process has one thread. Our own copy, false for good, lets the addon load on older systems.
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
