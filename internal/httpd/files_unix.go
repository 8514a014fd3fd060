//go:build unix

package httpd

import (
	"math"
	"syscall"
)

// ConnectionLimit is how many connections of clients the limit of open files leaves
// room for, when some are reserved for listeners, NATS, peer links and logs: one beyond it
// is refused with 503 before accept itself fails.
func ConnectionLimit(reserved int) int64 {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil || l.Cur > math.MaxInt32 {
		return math.MaxInt32
	}
	return max(1, int64(l.Cur)-int64(reserved))
}
