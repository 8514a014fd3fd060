package httpd

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// waitsAreKnown is whether this system tells.
const waitsAreKnown = true

// waited is how long ago the last bytes of a connection arrived: for as long the request
// in them waited to be looked at, in the kernel and for a processor. The kernel counts in
// ticks of 1 to 10 ms.
func waited(c syscall.RawConn) time.Duration {
	var d time.Duration
	_ = c.Control(func(fd uintptr) {
		if i, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			d = time.Duration(i.Last_data_recv) * time.Millisecond
		}
	})
	return d
}
