// Package tunneltest tests tunnel drivers and stands in for them.
//
// It owns Run, the conformance suite that every driver passes; Namespaces,
// the world of network namespaces it runs real drivers in; and Fabric, an
// in-memory network whose Kind, ESPKind and UserESPKind make faithful fake drivers, for
// tests of code that uses drivers. The fakes pass the same suite: if one drifts from
// the kernel, its own test breaks.
//
// It does not own any driver, and it imports testing: never import it from
// product code.
//
// Invariants: the suite waits on conditions with deadlines, never on time; it
// needs no external program and no file outside the test binary, so a
// compiled test binary runs it in a bare initramfs.
//
// Start with Run and NewFabric.
package tunneltest
