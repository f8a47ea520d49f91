// Command guest is the first process of the virtual machine of test/vm.
//
// It owns: mounting the kernel's file systems, loading the modules that lie
// in /modules in the order of their names, running the suites of /suites.json
// one after the other, and turning the machine off.
//
// What it writes to the second serial line is the suites' output, between
// marker lines (see package vm, which reads them). The kernel's messages and its
// own go to the first.
//
// It runs twice: as process 1, which only waits for children whose parents
// have gone, and as the child of that, which does the work.
//
// Start with main.
package main
