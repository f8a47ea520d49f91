// Package block lets a goroutine wait in the kernel for packets, with its thread.
//
// The runtime's poller is made for many connections that wait for long. A worker has three
// files, and waits for microseconds: parking a goroutine there, and finding somebody to run it
// again, costs more than the packets do.
//
// It owns the wait, how it ends when a file is closed and how that is told (Conn), files that the poller does not know of, and
// what keeps the runtime's monitor asleep. The monitor wakes up every 20 µs while it finds something
// to do: a goroutine that is in the kernel while all of the runtime's processors are taken, so a
// process has more of them (Processors) than goroutines that wait here; and a goroutine that has run
// for 10 ms, so those that wait here give way before (Turns).
//
// Start with Alarm.Wait.
package block
